// What a caller's batch must be like before any of it is used.
#pragma once

#include "package/package.h"
#include "qla/qla.h"

namespace qla {

// Throws qla::Error. Offsets are checked before any id is read, so that no id beyond the last
// offset ever is.
void check_batch(const qla_batch& batch, const EncoderSpec& spec);
void check_outputs(const qla_outputs& outputs);

}  // namespace qla
