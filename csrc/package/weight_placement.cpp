#include "package/weight_placement.h"

#include <cstring>

#include "error.h"

namespace qla {

WeightPlacement parse_weight_placement(const char* name) {
  if (name == nullptr || !strcmp(name, "auto")) return WeightPlacement::kAuto;
  if (!strcmp(name, "mapped")) return WeightPlacement::kMapped;
  if (!strcmp(name, "resident")) return WeightPlacement::kResident;
  fail(QLA_INVALID_INPUT, "weights '%.60s' is unknown; use auto, mapped or resident", name);
}

}  // namespace qla
