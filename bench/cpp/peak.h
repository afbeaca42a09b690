// The dot-product peak of one core: the instructions a GEMM of an instruction set is made of, on
// registers alone, as many at once as the pipelines hold.
#pragma once

#include "cpu_features.h"

namespace qla {

// Multiply-accumulates of one call of run_peak; 0 where `isa` has no dot product to measure (ref).
double peak_macs(Isa isa);
// The tile configuration must be loaded for kAmx.
void run_peak(Isa isa);

}  // namespace qla
