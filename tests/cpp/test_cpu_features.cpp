// What may run here, and whether the words for "no" name the right culprit.
#include <gtest/gtest.h>
#include <stdlib.h>

#include <string>

#include "cpu_features.h"

namespace qla {
namespace {

constexpr CpuFacts kEverything = {.avx2 = true,
                                  .avx_vnni = true,
                                  .avx512_vnni = true,
                                  .amx = true,
                                  .os_ymm = true,
                                  .os_zmm = true,
                                  .os_tiles = true};

class MaxIsa : public testing::Test {
 protected:
  void SetUp() override {
    if (const char* value = getenv("QLA_MAX_ISA")) saved_ = value;
    unsetenv("QLA_MAX_ISA");
  }
  void TearDown() override { setenv("QLA_MAX_ISA", saved_.c_str(), 1); }  // empty means unset

 private:
  std::string saved_;
};

TEST(CpuFeatures, NamesRoundTrip) {
  for (Isa isa : kAllIsas) {
    Isa parsed;
    ASSERT_TRUE(parse_isa(isa_name(isa), &parsed));
    EXPECT_EQ(parsed, isa);
  }
  Isa isa = Isa::kAvx2;
  for (const char* wrong : {"", "AVX2", "avx2 ", "avx512", "amx2"})
    EXPECT_FALSE(parse_isa(wrong, &isa)) << wrong;
  EXPECT_EQ(isa, Isa::kAvx2);
}

TEST(CpuFeatures, MissingNamesTheFirstObstacle) {
  for (Isa isa : kAllIsas) EXPECT_EQ(missing(kEverything, isa), nullptr);
  EXPECT_EQ(missing(CpuFacts{}, Isa::kRef), nullptr);

  const struct {
    bool CpuFacts::* without;
    Isa first_lost;
    const char* words;
  } kCases[] = {
      {&CpuFacts::avx2, Isa::kAvx2, "the CPU lacks AVX2"},
      {&CpuFacts::os_ymm, Isa::kAvx2, "the operating system does not enable the AVX state"},
      {&CpuFacts::avx512_vnni, Isa::kAvx512Vnni, "the CPU lacks AVX-512"},
      {&CpuFacts::os_zmm, Isa::kAvx512Vnni, "the operating system does not enable the AVX-512"},
      {&CpuFacts::amx, Isa::kAmx, "the CPU lacks AMX"},
      {&CpuFacts::os_tiles, Isa::kAmx, "the operating system does not enable the AMX state"},
  };
  for (const auto& c : kCases) {
    CpuFacts facts = kEverything;
    facts.*c.without = false;
    for (Isa isa : kAllIsas) {
      const char* what = missing(facts, isa);
      if (isa < c.first_lost) {
        EXPECT_EQ(what, nullptr) << isa_name(isa);
      } else {
        ASSERT_NE(what, nullptr) << isa_name(isa);
        EXPECT_EQ(std::string(what).find(c.words), 0u) << what;
      }
    }
  }
}

// A server chip of the years before AVX-VNNI skips one step of the ladder.
TEST(CpuFeatures, Avx512DoesNotNeedAvxVnni) {
  CpuFacts facts = kEverything;
  facts.avx_vnni = false;
  EXPECT_STREQ(missing(facts, Isa::kAvxVnni), "the CPU lacks AVX-VNNI");
  EXPECT_EQ(missing(facts, Isa::kAvx512Vnni), nullptr);
  EXPECT_EQ(missing(facts, Isa::kAmx), nullptr);
}

TEST(CpuFeatures, AgreesWithTheCompilersOwnDetection) {
  const CpuFacts facts = read_cpu();
  __builtin_cpu_init();
  EXPECT_EQ(facts.avx2 && facts.os_ymm,
            __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"));
  EXPECT_EQ(missing(facts, Isa::kAvx512Vnni) == nullptr,
            __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                __builtin_cpu_supports("avx512vnni"));
}

TEST_F(MaxIsa, CapsAndSaysSo) {
  EXPECT_TRUE(isa_status(Isa::kRef).usable);
  for (Isa cap : kAllIsas) {
    setenv("QLA_MAX_ISA", isa_name(cap), 1);
    Isa read;
    ASSERT_EQ(max_isa(&read), nullptr);
    EXPECT_EQ(read, cap);
    EXPECT_LE(best_isa(), cap);
    for (Isa isa : kAllIsas) {
      const IsaStatus status = isa_status(isa);
      ASSERT_NE(status.reason, nullptr);
      if (isa <= cap) continue;
      EXPECT_FALSE(status.usable);
      if (missing(read_cpu(), isa) == nullptr) {
        EXPECT_EQ(status.reason, std::string("capped by QLA_MAX_ISA=") + isa_name(cap));
      }
    }
  }
}

TEST_F(MaxIsa, AnInvalidValueIsReportedAndDoesNotCap) {
  const Isa best = best_isa();
  for (const std::string& wrong :
       {std::string("avx512"), std::string("AMX"), std::string(" amx"), std::string(1000, 'x')}) {
    setenv("QLA_MAX_ISA", wrong.c_str(), 1);
    Isa cap = Isa::kRef;
    const char* error = max_isa(&cap);
    ASSERT_NE(error, nullptr) << wrong;
    EXPECT_NE(std::string(error).find("ref, avx2, avxvnni, avx512vnni, amx"), std::string::npos);
    EXPECT_EQ(cap, Isa::kRef);
    EXPECT_EQ(best_isa(), best);
  }
}

TEST_F(MaxIsa, TheAmxAnswerStays) {
  const IsaStatus first = isa_status(Isa::kAmx), again = isa_status(Isa::kAmx);
  EXPECT_EQ(first.usable, again.usable);
  EXPECT_EQ(first.reason, again.reason);
}

}  // namespace
}  // namespace qla
