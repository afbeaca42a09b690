"""How a server starts, works and ends: one process or several, and what SIGTERM does.

After SIGTERM ``/ready`` is false, and every response asks its client to close the connection. For ``drain_s``
seconds the server goes on, so that load balancers and clients with open connections can turn away without a loss.
Then it stops listening, answers what it has accepted, and exits with status 0. A second signal ends it at once.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence

from qla_runtime.errors import InputError
from qla_runtime.serve import metrics
from qla_runtime.serve.listener import address, bound
from qla_runtime.serve.options import ServeOptions
from qla_runtime.serve.process import opened, run
from qla_runtime.serve.workers import Workers


def serve(
    packages: Mapping[str, str | None], options: ServeOptions, announce: Callable[[str], None] | None = None
) -> None:
    """Serves until a signal ends it.

    Args:
        packages: what ``Engine.from_pretrained`` takes, by the names that clients call the models. The name
            ``""`` stands for the package's own.
        options: as on the command line.
        announce: is told the address once requests are answered.

    Raises:
        QlaError: a package cannot be opened, the address is taken, or a worker does not start.
    """
    with bound(options.host, options.port) as listener:
        said = f"http://{address(listener)}"
        if options.workers == 1:
            models = opened(packages, options)
            run(models, options, listener, lambda: announce and announce(said), alone=True)
        else:
            # What is wrong with a package is said once, and the cost model is measured while all is quiet.
            opened(packages, options).close()
            with tempfile.TemporaryDirectory(prefix="qla-metrics-") as folder:
                os.environ.setdefault(metrics.FOLDER, folder)
                Workers(packages, options, listener).run(lambda: announce and announce(said))


def packages_of(specs: Sequence[str]) -> dict[str, str | None]:
    """``NAME=PACKAGE`` or ``PACKAGE``, as the command line has them, for :func:`serve`.

    Raises:
        InputError: a name that occurs twice.
    """
    found: dict[str, str | None] = {}
    for spec in specs:
        name, equals, package = spec.partition("=")
        if not equals:
            name, package = "", spec
        if name in found:
            raise InputError(
                f"{spec}: another package is called {name!r}; name packages apart, as in NAME=PACKAGE"
                if name
                else f"{spec} is a second package without a name; write NAME={spec}"
            )
        found[name] = package
    return found
