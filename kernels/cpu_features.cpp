// CPUID + XCR0 + arch_prctl. Compiled for the baseline: this file runs before anything is known.
#include "cpu_features.h"

#include <cpuid.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

// Defined only by tests/emulator when it is preloaded or linked; null otherwise. Needs -fPIC or
// -fPIE: in position-dependent code the linker settles a weak symbol as null for good.
extern "C" __attribute__((weak, visibility("default"))) int qla_amx_emulator_active(void);

namespace qla {
namespace {

constexpr char kUsable[] = "usable";

struct IsaText {
  const char *name, *no_cpu, *no_os, *capped;
};

constexpr IsaText kText[] = {
    {"ref", "", "", "capped by QLA_MAX_ISA=ref"},
    {"avx2", "the CPU lacks AVX2 or FMA",
     "the operating system does not enable the AVX state (XCR0 bits 1, 2)",
     "capped by QLA_MAX_ISA=avx2"},
    {"avxvnni", "the CPU lacks AVX-VNNI", "", "capped by QLA_MAX_ISA=avxvnni"},
    {"avx512vnni", "the CPU lacks AVX-512 F, BW, DQ, VL or VNNI",
     "the operating system does not enable the AVX-512 state (XCR0 bits 5, 6, 7)",
     "capped by QLA_MAX_ISA=avx512vnni"},
    {"amx", "the CPU lacks AMX-TILE or AMX-INT8",
     "the operating system does not enable the AMX state (XCR0 bits 17, 18; Linux 5.16 or later)",
     ""},
};

const IsaText& text(Isa isa) { return kText[static_cast<int>(isa)]; }

bool has(uint32_t word, int bit) { return (word >> bit) & 1; }

bool has_all(uint64_t word, uint64_t mask) { return (word & mask) == mask; }

uint64_t xcr0() {
  uint32_t low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

bool emulated() { return qla_amx_emulator_active && qla_amx_emulator_active() == 1; }

// Linux grants the 8 KiB tile state per process and on request only (Documentation/arch/x86/
// xstate.rst). The answer is inherited by fork, so it is asked for once.
IsaStatus request_amx() {
  constexpr int kGetPermission = 0x1022, kRequestPermission = 0x1023, kTileData = 18;
  if (emulated()) return {true, "emulated (test only)"};
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) != 0) {
    if (errno == ENOSPC)
      return {false,
              "permission refused: a thread holds a sigaltstack too small for the tile state"};
    if (errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP)
      return {false, "permission refused: this kernel or sandbox does not know the AMX request"};
    return {false, "permission refused by the operating system"};
  }
  uint64_t granted = 0;
  if (syscall(SYS_arch_prctl, kGetPermission, &granted) != 0 || !has(granted, kTileData))
    return {false, "permission refused: requested, but not among the granted state"};
  return {true, kUsable};
}

// The function-local static is the lock: the first caller asks, the others wait for the answer.
IsaStatus amx_permission() {
  static const IsaStatus status = request_amx();
  return status;
}

}  // namespace

const char* isa_name(Isa isa) { return text(isa).name; }

bool parse_isa(const char* name, Isa* isa) {
  for (Isa candidate : kAllIsas)
    if (strcmp(name, isa_name(candidate)) == 0) return *isa = candidate, true;
  return false;
}

CpuFacts read_cpu() {
  CpuFacts facts = {};
  uint32_t eax, ebx, ecx, edx;
  if (__get_cpuid_max(0, nullptr) < 7) return facts;

  __cpuid(1, eax, ebx, ecx, edx);
  const bool avx = has(ecx, 28), fma = has(ecx, 12), osxsave = has(ecx, 27);

  __cpuid_count(7, 0, eax, ebx, ecx, edx);
  const uint32_t last_subleaf = eax;
  constexpr uint32_t kF = 1u << 16, kDq = 1u << 17, kBw = 1u << 30, kVl = 1u << 31;  // ebx
  constexpr uint32_t kTile = 1u << 24, kInt8 = 1u << 25;                             // edx
  facts.avx2 = avx && fma && has(ebx, 5);
  facts.avx512_vnni = has_all(ebx, kF | kDq | kBw | kVl) && has(ecx, 11);
  facts.amx = has_all(edx, kTile | kInt8);
  if (last_subleaf >= 1) {
    __cpuid_count(7, 1, eax, ebx, ecx, edx);
    facts.avx_vnni = has(eax, 4);
  }

  const uint64_t enabled = osxsave ? xcr0() : 0;
  facts.os_ymm = has_all(enabled, 0x6);         // SSE, AVX
  facts.os_zmm = has_all(enabled, 0xe6);        // and the masks, zmm0-15, zmm16-31
  facts.os_tiles = has_all(enabled, 3u << 17);  // tile configuration, tile data
  return facts;
}

const char* missing(const CpuFacts& facts, Isa isa) {
  if (isa == Isa::kRef) return nullptr;
  if (!facts.avx2) return text(Isa::kAvx2).no_cpu;
  if (!facts.os_ymm) return text(Isa::kAvx2).no_os;
  if (isa == Isa::kAvxVnni) return facts.avx_vnni ? nullptr : text(isa).no_cpu;
  if (isa == Isa::kAvx2) return nullptr;
  if (!facts.avx512_vnni) return text(Isa::kAvx512Vnni).no_cpu;
  if (!facts.os_zmm) return text(Isa::kAvx512Vnni).no_os;
  if (isa == Isa::kAvx512Vnni) return nullptr;
  if (!facts.amx) return text(isa).no_cpu;
  if (!facts.os_tiles) return text(isa).no_os;
  return nullptr;
}

const char* max_isa(Isa* cap) {
  const char* value = getenv("QLA_MAX_ISA");
  if (value == nullptr || *value == '\0') return *cap = Isa::kAmx, nullptr;
  if (parse_isa(value, cap)) return nullptr;
  static thread_local char message[128];
  snprintf(message, sizeof message,
           "QLA_MAX_ISA is \"%.24s\"; set it to one of ref, avx2, avxvnni, avx512vnni, amx", value);
  return message;
}

IsaStatus isa_status(Isa isa) {
  static const CpuFacts kFacts = read_cpu();  // CPUID leaves a virtual machine: ask once
  CpuFacts facts = kFacts;
  if (emulated()) facts.amx = facts.os_tiles = true;  // the AVX-512 parts must still be real
  if (const char* what = missing(facts, isa)) return {false, what};
  Isa cap = Isa::kAmx;
  max_isa(&cap);
  if (isa > cap) return {false, text(cap).capped};
  return isa == Isa::kAmx ? amx_permission() : IsaStatus{true, kUsable};
}

Isa best_isa() {
  Isa best = Isa::kRef;
  for (Isa isa : kAllIsas)
    if (isa_status(isa).usable) best = isa;
  return best;
}

}  // namespace qla
