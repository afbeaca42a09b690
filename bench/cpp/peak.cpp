// Inline assembly, so that the compiler can neither drop nor reorder what is measured, and this
// file needs no flags beyond the baseline. Twelve independent accumulators: more than latency (5
// cycles at most) times rate (2 a cycle); the AMX kernel has four, which just cover a tile
// product's 52 cycles at one in 16.
#include "peak.h"

namespace qla {
namespace {

constexpr int kSteps = 20000;
constexpr int kAccumulators = 12;
constexpr int kTileProducts = 4;

#define QLA_VECTOR_CLOBBERS                                                                \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", \
      "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"

// avx2 has no 8-bit dot product that does not saturate: its GEMM multiplies widened operands.
void peak_avx2() {
  for (int i = 0; i < kSteps; ++i) {
    asm volatile(
        ".irp r,0,1,2,3,4,5,6,7,8,9,10,11\n"
        "vpmaddwd %%ymm15, %%ymm14, %%ymm13\n"
        "vpaddd %%ymm13, %%ymm\\r, %%ymm\\r\n"
        ".endr" ::
            : QLA_VECTOR_CLOBBERS);
  }
  asm volatile("vzeroupper" ::: QLA_VECTOR_CLOBBERS);
}

void peak_avxvnni() {
  for (int i = 0; i < kSteps; ++i) {
    asm volatile(
        ".irp r,0,1,2,3,4,5,6,7,8,9,10,11\n"
        "%{vex%} vpdpbusd %%ymm15, %%ymm14, %%ymm\\r\n"
        ".endr" ::
            : QLA_VECTOR_CLOBBERS);
  }
  asm volatile("vzeroupper" ::: QLA_VECTOR_CLOBBERS);
}

void peak_avx512vnni() {
  for (int i = 0; i < kSteps; ++i) {
    asm volatile(
        ".irp r,0,1,2,3,4,5,6,7,8,9,10,11\n"
        "vpdpbusd %%zmm15, %%zmm14, %%zmm\\r\n"
        ".endr" ::
            : QLA_VECTOR_CLOBBERS);
  }
  asm volatile("vzeroupper" ::: QLA_VECTOR_CLOBBERS);
}

void peak_amx() {
  for (int i = 0; i < kSteps; ++i) {
    asm volatile(
        "tdpbusd %tmm6, %tmm4, %tmm0\n"
        "tdpbusd %tmm7, %tmm4, %tmm1\n"
        "tdpbusd %tmm6, %tmm5, %tmm2\n"
        "tdpbusd %tmm7, %tmm5, %tmm3");
  }
}

}  // namespace

double peak_macs(Isa isa) {
  constexpr double kVectors = 1.0 * kSteps * kAccumulators;
  switch (isa) {
    case Isa::kRef:
      return 0;
    case Isa::kAvx2:
      return kVectors * 16;
    case Isa::kAvxVnni:
      return kVectors * 32;
    case Isa::kAvx512Vnni:
      return kVectors * 64;
    case Isa::kAmx:
      return 1.0 * kSteps * kTileProducts * 16 * 16 * 64;
  }
  return 0;
}

void run_peak(Isa isa) {
  switch (isa) {
    case Isa::kRef:
      return;
    case Isa::kAvx2:
      return peak_avx2();
    case Isa::kAvxVnni:
      return peak_avxvnni();
    case Isa::kAvx512Vnni:
      return peak_avx512vnni();
    case Isa::kAmx:
      return peak_amx();
  }
}

}  // namespace qla
