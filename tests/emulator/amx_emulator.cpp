// The AMX emulator: lets the real AMX kernels run, byte for byte as compiled, on a CPU without AMX.
//
//   LD_PRELOAD=libamx_emulator.so some_test          (or link it into the test)
//
// A CPU without AMX, or a process without the AMX permission, answers a tile instruction with
// SIGILL. The handler here decodes it, does what the Intel SDM says on tiles of its own (one set
// per thread), and lets the thread go on behind it. What the hardware answers with a fault is a bug
// in a kernel, so it prints what was wrong and aborts. The emulator needs AVX2 and FMA.
//
// Out of scope: start_row other than 0 (only an interrupted load has one), segment and address-size
// prefixes (no compiler puts them there), and a process that got the permission on a CPU with AMX
// (nothing traps then, so nothing is emulated).
#pragma GCC target("avx2,fma")

#include <dlfcn.h>
#include <errno.h>
#include <immintrin.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <initializer_list>

#define EXPORT extern "C" __attribute__((visibility("default")))

// kernels/cpu_features.cpp looks for this.
EXPORT int qla_amx_emulator_active(void) { return 1; }

namespace {

constexpr int kTiles = 8, kMaxRows = 16, kMaxColsb = 64;

// ---- State -------------------------------------------------------------------------------------

// The 64 bytes of LDTILECFG, palette 1 (SDM, "TILECFG Memory Layout").
struct Config {
  uint8_t palette, start_row, reserved0[14];
  uint16_t colsb[16];
  uint8_t rows[16];
};
static_assert(sizeof(Config) == 64);

// No instruction shows bytes outside a tile's rows and colsb, and LDTILECFG, which could bring them
// inside, zeroes everything. So they may hold anything, and "zero the upper rows" needs no code.
struct alignas(64) Tile {
  uint8_t row[kMaxRows][kMaxColsb];
};

// Initial-exec TLS lies in the thread's static block: touching it never allocates.
#define TLS __thread __attribute__((tls_model("initial-exec")))
TLS Config config;
TLS Tile tiles[kTiles];

// ---- Decoding ----------------------------------------------------------------------------------

enum Prefix { kNone, k66, kF3, kF2 };  // the two pp bits of a VEX prefix

enum class Op {
  kLoadConfig,
  kStoreConfig,
  kRelease,
  kZero,
  kLoad,
  kStore,
  kDotSS,
  kDotSU,
  kDotUS,
  kDotUU,
  kDotBf16
};

constexpr const char* kNames[] = {"LDTILECFG", "STTILECFG",  "TILERELEASE", "TILEZERO",
                                  "TILELOADD", "TILESTORED", "TDPBSSD",     "TDPBSUD",
                                  "TDPBUSD",   "TDPBUUD",    "TDPBF16PS"};

struct Instruction {
  Op op;
  int dst, src1, src2;  // ModRM.reg, ModRM.rm, VEX.vvvv
  uint8_t* address;     // memory operand, null without one
  int64_t stride;       // index << scale: the distance of two rows
  const uint8_t *at, *end;
};

constexpr int kGreg[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                           REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

template <class T>
T take(const uint8_t*& p) {
  T value;
  memcpy(&value, p, sizeof value);
  p += sizeof value;
  return value;
}

// The operation, by opcode, prefix and kind of operand. False: not AMX, or not allowed.
bool classify(uint8_t opcode, int prefix, bool memory, bool sib, int reg, int rm, int vvvv,
              Op* op) {
  if (opcode == 0x5c || opcode == 0x5e) {  // three tiles; bit 3 of a number would be a ninth tile
    if (memory || reg > 7 || rm > 7 || vvvv > 7) return false;
    constexpr Op kInt8[] = {Op::kDotUU, Op::kDotUS, Op::kDotSU, Op::kDotSS};
    *op = opcode == 0x5c ? Op::kDotBf16 : kInt8[prefix];
    return opcode == 0x5e || prefix == kF3;
  }
  if (vvvv != 0) return false;
  if (opcode == 0x4b) {  // a tile and strided memory; 66 is TILELOADDT1, a load with a cache hint
    *op = prefix == kF3 ? Op::kStore : Op::kLoad;
    return sib && reg < 8 && prefix != kNone;
  }
  if (opcode != 0x49) return false;
  if (memory) {
    *op = prefix == k66 ? Op::kStoreConfig : Op::kLoadConfig;
    return (reg & 7) == 0 && (prefix == kNone || prefix == k66);
  }
  *op = prefix == kF2 ? Op::kZero : Op::kRelease;
  return (rm & 7) == 0 && ((prefix == kF2 && reg < 8) || (prefix == kNone && (reg & 7) == 0));
}

// Reads bytes only as far as the ones before say that the instruction goes on: the next page may
// not be there.
bool decode(const greg_t* greg, const uint8_t* p, Instruction* out) {
  *out = {};
  out->at = p;
  if (take<uint8_t>(p) != 0xc4) return false;  // three-byte VEX: the only one that reaches map 2
  const uint8_t vex1 = take<uint8_t>(p);       // ~R ~X ~B mmmmm
  if ((vex1 & 0x1f) != 2) return false;        // map 0F 38
  const uint8_t vex2 = take<uint8_t>(p);       // W ~vvvv L pp
  if (vex2 & 0x84) return false;               // AMX: W = 0, L = 0
  const int vvvv = ~vex2 >> 3 & 15, prefix = vex2 & 3;
  const uint8_t opcode = take<uint8_t>(p);
  if (opcode != 0x49 && opcode != 0x4b && opcode != 0x5c && opcode != 0x5e) return false;

  const uint8_t modrm = take<uint8_t>(p);
  const int mod = modrm >> 6;
  const int reg = (modrm >> 3 & 7) | (vex1 & 0x80 ? 0 : 8);
  const int rm = (modrm & 7) | (vex1 & 0x20 ? 0 : 8);
  const bool memory = mod != 3, sib = memory && (modrm & 7) == 4;
  if (!classify(opcode, prefix, memory, sib, reg, rm, vvvv, &out->op)) return false;
  out->dst = reg & 7;
  out->src1 = rm & 7;
  out->src2 = vvvv;

  if (memory) {
    int base = rm;
    uint64_t index = 0;
    if (sib) {
      const uint8_t byte = take<uint8_t>(p);
      base = (byte & 7) | (vex1 & 0x20 ? 0 : 8);
      const int number = (byte >> 3 & 7) | (vex1 & 0x40 ? 0 : 8);
      if (number != 4) index = static_cast<uint64_t>(greg[kGreg[number]]) << (byte >> 6);
    }
    const bool no_base = mod == 0 && (base & 7) == 5;  // rbp and r13 as base need a displacement
    int64_t displacement = 0;
    if (mod == 1) displacement = take<int8_t>(p);
    if (mod == 2 || no_base) displacement = take<int32_t>(p);
    uint64_t address = displacement;
    if (!no_base)
      address += greg[kGreg[base]];
    else if (!sib)
      address += reinterpret_cast<uint64_t>(p);  // RIP-relative: from the end of the instruction
    // For a tile the index is the distance of rows; elsewhere it is part of the address.
    if (opcode == 0x4b)
      out->stride = static_cast<int64_t>(index);
    else
      address += index;
    out->address = reinterpret_cast<uint8_t*>(address);
  }
  out->end = p;
  return true;
}

// ---- What the hardware would refuse ------------------------------------------------------------

// A tile instruction is a fault of its own thread, so nothing of libc was interrupted and stdio is
// safe here.
[[noreturn]] void die(const Instruction& in, const char* why) {
  fprintf(stderr, "amx_emulator: %s at %p (tiles %d %d %d): %s\n", kNames[static_cast<int>(in.op)],
          static_cast<const void*>(in.at), in.dst, in.src1, in.src2, why);
  for (int t = 0; t < kTiles; ++t)
    if (config.palette) fprintf(stderr, "  tmm%d: %d x %d\n", t, config.rows[t], config.colsb[t]);
  abort();
}

void require(bool good, const Instruction& in, const char* rule) {
  if (!good) die(in, rule);
}

void require_tile(const Instruction& in, int t) {
  require(config.palette != 0, in, "no tile configuration is loaded");
  require(config.rows[t] != 0, in, "a tile has no shape in the configuration");
  require(config.colsb[t] % 4 == 0, in, "colsb is not a multiple of 4");
}

void check_config(const Instruction& in, const Config& c) {
  require(c.palette == 1, in, "palette is neither 0 nor 1");
  require(c.start_row == 0, in, "start_row is not 0");
  for (uint8_t byte : c.reserved0) require(byte == 0, in, "reserved bytes 2-15 are not 0");
  for (int t = 0; t < 16; ++t) {
    require(t < kTiles || (c.colsb[t] == 0 && c.rows[t] == 0), in,
            "a tile beyond the eighth has a shape (reserved bytes)");
    require(c.colsb[t] <= kMaxColsb && c.rows[t] <= kMaxRows, in, "a tile exceeds 16 x 64 bytes");
    require((c.colsb[t] == 0) == (c.rows[t] == 0), in, "a tile has rows or columns but not both");
  }
}

void check_dot(const Instruction& in) {
  const int c = in.dst, a = in.src1, b = in.src2;
  require(c != a && c != b && a != b, in, "the three tiles must be different");
  for (int t : {c, a, b}) require_tile(in, t);
  require(config.rows[a] == config.rows[c], in, "rows of A and C differ");
  require(config.colsb[b] == config.colsb[c], in, "columns of B and C differ");
  require(config.colsb[a] == 4 * config.rows[b], in, "columns of A / 4 and rows of B differ");
}

// ---- Arithmetic --------------------------------------------------------------------------------

// Two ymm hold a tile row of 16 dwords.
__m256i load_half(const uint8_t* row, int half) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(row) + half);
}

void store_half(uint8_t* row, int half, __m256i value) {
  _mm256_store_si256(reinterpret_cast<__m256i*>(row) + half, value);
}

// Bytes 0 and 2, or 1 and 3, of each dword, widened to 16 bits.
template <bool kSigned>
__m256i even_bytes(__m256i x) {
  return kSigned ? _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8)
                 : _mm256_and_si256(x, _mm256_set1_epi16(0xff));
}
template <bool kSigned>
__m256i odd_bytes(__m256i x) {
  return kSigned ? _mm256_srai_epi16(x, 8) : _mm256_srli_epi16(x, 8);
}

int dword(const uint8_t* row, int k) {
  int value;
  memcpy(&value, row + 4 * k, 4);
  return value;
}

// Exact: a pair of products fits 18 bits, and sums wrap as the instruction's do.
template <bool kSignedA, bool kSignedB>
void dot_int8(Tile& c, const Tile& a, const Tile& b, int rows, int depth) {
  for (int half = 0; half < 2; ++half) {
    __m256i even[kMaxRows], odd[kMaxRows];
    for (int k = 0; k < depth; ++k) {
      even[k] = even_bytes<kSignedB>(load_half(b.row[k], half));
      odd[k] = odd_bytes<kSignedB>(load_half(b.row[k], half));
    }
    for (int m = 0; m < rows; ++m) {
      __m256i sum = load_half(c.row[m], half);
      for (int k = 0; k < depth; ++k) {
        const __m256i x = _mm256_set1_epi32(dword(a.row[m], k));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(even_bytes<kSignedA>(x), even[k]));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(odd_bytes<kSignedA>(x), odd[k]));
      }
      store_half(c.row[m], half, sum);
    }
  }
}

__m256 low_bf16(__m256i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)); }
__m256 high_bf16(__m256i x) {
  return _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(0xffff0000)));
}

// Two chains over k, one per half of the pairs; then c + (even + odd). The caller sets MXCSR: never
// inline this, or arithmetic may drift across that.
__attribute__((noipa)) void dot_bf16(Tile& c, const Tile& a, const Tile& b, int rows, int depth) {
  for (int m = 0; m < rows; ++m) {
    for (int half = 0; half < 2; ++half) {
      __m256 even = _mm256_setzero_ps(), odd = _mm256_setzero_ps();
      for (int k = 0; k < depth; ++k) {
        const __m256i x = _mm256_set1_epi32(dword(a.row[m], k)), y = load_half(b.row[k], half);
        even = _mm256_fmadd_ps(low_bf16(x), low_bf16(y), even);
        odd = _mm256_fmadd_ps(high_bf16(x), high_bf16(y), odd);
      }
      const __m256 sum = _mm256_castsi256_ps(load_half(c.row[m], half));
      const __m256 total = _mm256_add_ps(sum, _mm256_add_ps(even, odd));
      store_half(c.row[m], half, _mm256_castps_si256(total));
    }
  }
}

// ---- Execution ---------------------------------------------------------------------------------

void load_config(const Instruction& in) {
  Config wanted;
  memcpy(&wanted, in.address, sizeof wanted);
  if (wanted.palette == 0)
    wanted = {};
  else
    check_config(in, wanted);
  config = wanted;
  memset(tiles, 0, sizeof tiles);
}

void dot(const Instruction& in) {
  check_dot(in);
  Tile& c = tiles[in.dst];
  const Tile &a = tiles[in.src1], &b = tiles[in.src2];
  const int rows = config.rows[in.dst], depth = config.rows[in.src2];
  switch (in.op) {
    case Op::kDotSS:
      return dot_int8<true, true>(c, a, b, rows, depth);
    case Op::kDotSU:
      return dot_int8<true, false>(c, a, b, rows, depth);
    case Op::kDotUS:
      return dot_int8<false, true>(c, a, b, rows, depth);
    case Op::kDotUU:
      return dot_int8<false, false>(c, a, b, rows, depth);
    default:
      break;
  }
  const unsigned saved = _mm_getcsr();
  _mm_setcsr(0x9fc0);  // FTZ, DAZ, round to nearest even, every exception masked
  dot_bf16(c, a, b, rows, depth);
  _mm_setcsr(saved);
}

void execute(const Instruction& in) {
  switch (in.op) {
    case Op::kLoadConfig:
      return load_config(in);
    case Op::kStoreConfig:
      memcpy(in.address, &config, sizeof config);
      return;
    case Op::kRelease:
      config = {};
      memset(tiles, 0, sizeof tiles);
      return;
    case Op::kZero:
      require_tile(in, in.dst);
      memset(&tiles[in.dst], 0, sizeof(Tile));
      return;
    case Op::kLoad:
    case Op::kStore:
      require_tile(in, in.dst);
      for (int r = 0; r < config.rows[in.dst]; ++r) {
        uint8_t *memory = in.address + r * in.stride, *row = tiles[in.dst].row[r];
        if (in.op == Op::kLoad)
          memcpy(row, memory, config.colsb[in.dst]);
        else
          memcpy(memory, row, config.colsb[in.dst]);
      }
      return;
    default:
      return dot(in);
  }
}

// ---- The signal --------------------------------------------------------------------------------

using Sigaction = int (*)(int, const struct sigaction*, struct sigaction*);
using Signal = sighandler_t (*)(int, sighandler_t);

template <class F>
F real(const char* name) {
  return reinterpret_cast<F>(dlsym(RTLD_NEXT, name));
}

Sigaction real_sigaction() {
  static Sigaction function;  // no initialiser, so no lock of libstdc++: a preload should need none
  if (!function) function = real<Sigaction>("sigaction");
  return function;
}

struct sigaction next_action;  // what the program wants done with a SIGILL that is not ours

void pass_on(int number, siginfo_t* info, void* context) {
  if (next_action.sa_flags & SA_SIGINFO) return next_action.sa_sigaction(number, info, context);
  const bool from_cpu = info->si_code > 0;
  if (next_action.sa_handler == SIG_IGN && !from_cpu) return;
  if (next_action.sa_handler != SIG_IGN && next_action.sa_handler != SIG_DFL)
    return next_action.sa_handler(number);
  // Nobody wants it: with the default action back, the faulting instruction kills on its second
  // try (a faulting CPU cannot be ignored either), and a signal that was sent is sent again.
  struct sigaction fatal = {};
  fatal.sa_handler = SIG_DFL;
  real_sigaction()(SIGILL, &fatal, nullptr);
  if (!from_cpu) raise(number);
}

void on_sigill(int number, siginfo_t* info, void* context) {
  const int saved_errno = errno;
  greg_t* greg = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  Instruction in;
  int done = 0;
  // A signal costs more than a tile product, so a run of tile instructions is done in one go.
  while (info->si_code > 0 && decode(greg, reinterpret_cast<const uint8_t*>(greg[REG_RIP]), &in)) {
    execute(in);
    greg[REG_RIP] = reinterpret_cast<greg_t>(in.end);
    ++done;
  }
  if (done == 0) pass_on(number, info, context);
  errno = saved_errno;
}

// No SA_ONSTACK: an alternate stack may be small, and AMX code does not run on a broken stack.
__attribute__((constructor)) void install() {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
    fputs("amx_emulator: needs a CPU with AVX2 and FMA\n", stderr);
    abort();
  }
  struct sigaction ours = {};
  ours.sa_sigaction = on_sigill;
  ours.sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART;
  real_sigaction()(SIGILL, &ours, &next_action);
}

}  // namespace

// Programs that install a SIGILL handler of their own (pytest's faulthandler does) get their way
// for every other SIGILL, and the emulator stays in front of them.
EXPORT int sigaction(int number, const struct sigaction* wanted, struct sigaction* old) noexcept {
  if (number != SIGILL) return real_sigaction()(number, wanted, old);
  const struct sigaction before = next_action;
  if (wanted) next_action = *wanted;
  if (old) *old = before;
  return 0;
}

EXPORT sighandler_t signal(int number, sighandler_t handler) noexcept {
  if (number != SIGILL) return real<Signal>("signal")(number, handler);
  const sighandler_t before = next_action.sa_handler;
  next_action = {};
  next_action.sa_handler = handler;
  return before;
}
