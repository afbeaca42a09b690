// Letting go of the GIL around native calls, for CPython 3.10 and later: at interpreter exit, and
// while Ctrl-C waits.
#pragma once

#include <Python.h>
#include <cxxabi.h>
#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>

namespace qla::python {

[[noreturn]] inline void sleep_for_ever() {
  for (;;) pause();
}

// Takes the GIL again. While the interpreter exits, a daemon thread gets it no more: CPython before
// 3.14 ends the thread there by pthread_exit, whose unwinding would run destructors that need the
// GIL, and aborts the process where it meets a noexcept function. Such a thread sleeps instead, as
// CPython 3.14 itself lets it, until the process is gone.
inline void take_gil(PyThreadState* thread) {
  try {
    PyEval_RestoreThread(thread);
  } catch (const abi::__forced_unwind&) {
    sleep_for_ever();
  }
}

// The thread that Python runs signal handlers on; after fork() the child's only one. Kept here, as
// asking Python runs Python code, in which a thread may meet the interpreter's exit.
inline std::atomic<unsigned long> main_thread{0};

inline void remember_main_thread(unsigned long ident) {
  main_thread = ident;
  static const int once =
      pthread_atfork(nullptr, nullptr, [] { main_thread = PyThread_get_thread_ident(); });
  (void)once;
}

// A native call without the GIL. On the main thread the engine's stop callback comes back now and
// then to run Python's signal handlers: Ctrl-C then ends the call by its KeyboardInterrupt.
class WithoutGil {
 public:
  WithoutGil()
      : asks_(main_thread == PyThread_get_thread_ident()), next_(Clock::now() + kInterval) {
    thread_ = PyEval_SaveThread();
  }
  // Not a destructor: those are noexcept, and take_gil() must be able to catch an unwinding.
  void end() { take_gil(thread_); }

  int32_t (*stop() const)(void*) { return asks_ ? &ask : nullptr; }

 private:
  using Clock = std::chrono::steady_clock;
  // Other Python threads may hold the GIL for 5 ms each time: this keeps that to a few percent.
  static constexpr std::chrono::milliseconds kInterval{100};

  // 1 when a handler has raised; the exception stays set on this thread.
  static int32_t ask(void* self) {
    auto& call = *static_cast<WithoutGil*>(self);
    if (Clock::now() < call.next_) return 0;
    take_gil(call.thread_);
    const bool raised = PyErr_CheckSignals() != 0;
    call.thread_ = PyEval_SaveThread();
    call.next_ = Clock::now() + kInterval;
    return raised;
  }

  const bool asks_;
  Clock::time_point next_;
  PyThreadState* thread_;
};

}  // namespace qla::python
