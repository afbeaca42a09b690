// Turns kernels.inc into choices. Compiled for the baseline: it runs before anything is known.
#include <cstring>
#include <type_traits>

#include "attention_scratch.h"
#include "kernels.h"

namespace qla {

#define QLA_GEMM(format, isa, kernel, instructions) extern const Gemm kernel;
#define QLA_KERNEL(operation, isa, kernel, instructions) \
  std::remove_pointer_t<decltype(KernelSet::operation)> kernel;
#include "kernels.inc"
#undef QLA_GEMM
#undef QLA_KERNEL

void load_tile_config();
void release_tile_config();

namespace {

// Whether a CPU of `isa` runs kernels of `line`. The order has one gap: Cascade Lake and Ice Lake
// have AVX-512 VNNI but not the AVX (VEX) form.
bool includes(Isa isa, Isa line) {
  return line <= isa && (line != Isa::kAvxVnni || isa == Isa::kAvxVnni);
}

}  // namespace

KernelSet select_kernels(Isa isa) {
  KernelSet set{};
  // Lines of an operation rise by ISA, so the last one allowed is the best one.
#define QLA_GEMM(format, lowest, kernel, instructions) \
  if (includes(isa, Isa::lowest)) set.gemms[static_cast<int>(WeightFormat::format)] = kernel;
#define QLA_KERNEL(operation, lowest, kernel, instructions) \
  if (includes(isa, Isa::lowest)) set.operation = kernel;
#include "kernels.inc"
#undef QLA_GEMM
#undef QLA_KERNEL
  return set;
}

int selected_kernels(Isa isa, KernelInfo* lines, int capacity) {
  static const KernelInfo kTable[] = {
#define QLA_GEMM(format, lowest, kernel, instructions) \
  {weight_format(WeightFormat::format).gemm, Isa::lowest, #kernel, instructions},
#define QLA_KERNEL(operation, lowest, kernel, instructions) \
  {#operation, Isa::lowest, #kernel, instructions},
#include "kernels.inc"
#undef QLA_GEMM
#undef QLA_KERNEL
  };
  int count = 0;
  for (const KernelInfo& line : kTable) {
    if (!includes(isa, line.isa)) continue;
    const bool better = count > 0 && strcmp(lines[count - 1].operation, line.operation) == 0;
    if (!better && count == capacity) break;
    lines[better ? count - 1 : count++] = line;
  }
  return count;
}

size_t attention_scratch_bytes(int n, int head_dim) {
  return AttentionScratch(nullptr, n, head_dim).bytes;
}

int preferred_row_block(Isa isa) {
  switch (isa) {
    case Isa::kAmx:
      // A block reads the 1.8 MB of a MiniLM layer's weights, which beside its own 1.2 MB do not
      // stay in 2 MB of L2: at 1,024 MACs per cycle, 128 rows need 8 bytes of them per cycle. By
      // arithmetic only: no AMX machine has timed it.
      return 128;
    case Isa::kAvx512Vnni:
      return 48;  // 8 x 6 rows: A (18 KiB at k = 384) beside a 24 KiB panel of B
    default:
      return 24;
  }
}

void begin_tiles(Isa isa) {
  if (isa == Isa::kAmx) load_tile_config();
}
void end_tiles(Isa isa) {
  if (isa == Isa::kAmx) release_tile_config();
}

}  // namespace qla
