// Which instruction sets may run here and now, and if not, why not, in words.
// Decided by CPUID feature bits, XCR0 and the AMX permission only, never by CPU model.
#pragma once

namespace qla {

// In rising order: QLA_MAX_ISA cuts this list at the top.
enum class Isa { kRef, kAvx2, kAvxVnni, kAvx512Vnni, kAmx };
inline constexpr Isa kAllIsas[] = {Isa::kRef, Isa::kAvx2, Isa::kAvxVnni, Isa::kAvx512Vnni,
                                   Isa::kAmx};

// What the hardware has and what the operating system saves on a context switch.
// These bits are also the promise to the kernels: a file of an Isa uses no feature beyond them.
struct CpuFacts {
  bool avx2;         // AVX2 and FMA
  bool avx_vnni;     // AVX-VNNI (the VEX forms, on ymm)
  bool avx512_vnni;  // AVX-512 F, BW, DQ, VL and VNNI
  bool amx;          // AMX-TILE and AMX-INT8
  bool os_ymm, os_zmm, os_tiles;
};

struct IsaStatus {
  bool usable;
  const char* reason;  // never null, lives forever: "usable", or what stands in the way
};

const char* isa_name(Isa isa);               // "ref", "avx2", "avxvnni", "avx512vnni", "amx"
bool parse_isa(const char* name, Isa* isa);  // exact names only

CpuFacts read_cpu();

// Null when `facts` allow `isa`; else the first thing that is missing.
const char* missing(const CpuFacts& facts, Isa isa);

// The cap in QLA_MAX_ISA, read anew at each call: kAmx when unset or empty. Returns null, or for
// any other value an error text (valid on this thread until its next call) and leaves *cap alone.
const char* max_isa(Isa* cap);

// The first question about an uncapped kAmx asks the operating system for the AMX permission (once
// per process, cached, safe from any thread). An invalid QLA_MAX_ISA does not cap: callers that
// open an engine check max_isa() first.
IsaStatus isa_status(Isa isa);
Isa best_isa();

}  // namespace qla
