// AMX instructions with every kind of memory operand.
#include "amx_fixtures.h"

namespace {

// The assembler writes one stub for every base, index, scale and kind of displacement:
//   void stub(const Operands* rdi): base and index registers from *rdi, then
//   tileloadd displacement(base, index, scale), tmm2; tilestored tmm2 to the same form at `out`.
// rsp may be the base, so the stubs keep the caller's rsp in memory, and `base` must have room for
// a stack (a signal frame) below it.
struct Operands {
  const uint8_t* base;
  uint8_t* out;
  long index;
};

asm(R"(
        .pushsection .bss
        .balign 8
        .lcomm saved_rsp, 8
        .popsection
        .pushsection .text
        .macro enter
        push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15
        mov %rsp, saved_rsp(%rip)
        .endm
        .macro leave_stub
        mov saved_rsp(%rip), %rsp
        pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx
        ret
        .endm

        # Operands are in rdi; rdi itself may be base or index, so both come from the stack.
        .macro stub base, index, scale, displacement
        .balign 128
        enter
        push 16(%rdi); push 8(%rdi); push (%rdi)
        mov 16(%rsp), %\index
        mov (%rsp), %\base
        tileloadd \displacement(%\base,%\index,\scale), %tmm2
        mov saved_rsp(%rip), %rsp
        mov -16(%rsp), %\base
        tilestored %tmm2, \displacement(%\base,%\index,\scale)
        leave_stub
        .endm

        .balign 128
addressing_stubs:
        .irp base, rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
        .irp index, rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15
        .ifnc \base, \index
        stub \base, \index, 1, 0
        stub \base, \index, 2, -64
        stub \base, \index, 4, 0x1000
        stub \base, \index, 8, -0x80
        .endif
        .endr
        .endr
        .balign 128
addressing_stubs_end:
        .popsection
)");
extern "C" const uint8_t addressing_stubs[], addressing_stubs_end[];

// The forms without an index: every row comes from the same address.
OPAQUE void load_no_index(const uint8_t* p, Tile* out, int form) {
  switch (form) {
    case 0:
      asm volatile("tileloadd (%0), %%tmm2" ::"r"(p) : "memory");
      break;
    case 1:
      asm volatile("xchg %%r13, %0\n tileloadd (%%r13), %%tmm2\n xchg %%r13, %0"
                   : "+a"(p)::"memory");
      break;
    case 2:
      asm volatile("tileloadd -0x40(%0), %%tmm2" ::"r"(p + 0x40) : "memory");
      break;
    case 3:
      asm volatile("tileloadd 0x12345(%0), %%tmm2" ::"r"(p - 0x12345) : "memory");
      break;
  }
  _tile_stored(2, out, 64);
}

TEST_F(Amx, EveryBaseIndexScaleAndDisplacement) {
  constexpr int kStackRoom = 64 << 10, kPitch = 72;
  constexpr int kScale[] = {1, 2, 4, 8}, kDisplacement[] = {0, -64, 0x1000, -0x80};
  static uint8_t in[kStackRoom + (16 << 10)], out[kStackRoom + (16 << 10)];
  Config config;
  config.shape(2, 16, 64);
  load_config(config);

  const int stubs = static_cast<int>((addressing_stubs_end - addressing_stubs) / 128);
  ASSERT_EQ(stubs, 4 * (16 * 15 - 15));
  for (int i = 0; i < stubs; ++i) {
    const int stride = kPitch, displacement = kDisplacement[i % 4];
    // Below the operand only a stack may write: the pattern is filled in anew for each stub.
    for (size_t b = 0; b < sizeof in; ++b) in[b] = static_cast<uint8_t>(rng()());
    memset(out, 0, sizeof out);
    const Operands operands = {in + kStackRoom, out + kStackRoom, stride / kScale[i % 4]};
    reinterpret_cast<void (*)(const Operands*)>(
        reinterpret_cast<uintptr_t>(addressing_stubs + 128 * i))(&operands);
    for (int r = 0; r < 16; ++r) {
      const int at = kStackRoom + displacement + r * stride;
      ASSERT_EQ(memcmp(out + at, in + at, 64), 0) << "stub " << i << ", row " << r;
    }
  }
  _tile_release();
}

TEST_F(Amx, NoIndexRepeatsOneRow) {
  Config config;
  config.shape(2, 16, 64);
  load_config(config);
  const Tile in = random_tile();
  for (int form = 0; form < 4; ++form) {
    Tile got, want;
    for (auto& row : want.bytes) memcpy(row, in.bytes[7], 64);
    load_no_index(in.bytes[7], &got, form);
    EXPECT_TRUE(same(got, want)) << "form " << form;
  }
  _tile_release();
}

TEST_F(Amx, ConfigAtEveryKindOfAddress) {
  static Config at_rip = product_config(3, 5, 7);
  const Config config = product_config(9, 4, 2);
  const Config* p = &config;
  Config stored;
  asm volatile("ldtilecfg %0" ::"m"(at_rip));
  asm volatile("sttilecfg %0" : "=m"(stored));
  EXPECT_EQ(memcmp(&stored, &at_rip, 64), 0);
  asm volatile("ldtilecfg (%0)" ::"r"(p) : "memory");
  asm volatile("sttilecfg %0" : "=m"(at_rip));
  EXPECT_EQ(memcmp(&config, &at_rip, 64), 0);

  const auto check = [&] {
    asm volatile("sttilecfg %0" : "=m"(stored));
    EXPECT_EQ(memcmp(&stored, &config, 64), 0);
    _tile_release();
  };
  asm volatile("ldtilecfg 0x10(%0)" ::"r"(reinterpret_cast<uintptr_t>(p) - 0x10) : "memory");
  check();
  asm volatile("ldtilecfg -0x1000(%0,%1,8)" ::"r"(reinterpret_cast<uintptr_t>(p) + 0xf00), "r"(32L)
               : "memory");
  check();
  asm volatile("xchg %%r12, %0\n ldtilecfg (%%r12)\n xchg %%r12, %0" : "+a"(p)::"memory");
  check();
  asm volatile("xchg %%r13, %0\n ldtilecfg (%%r13)\n xchg %%r13, %0" : "+a"(p)::"memory");
  check();
  asm volatile("ldtilecfg (,%0,2)" ::"r"(reinterpret_cast<uintptr_t>(p) / 2) : "memory");
  check();
}

}  // namespace
