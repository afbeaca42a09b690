// Rounding to integers inside an addition, for every kernel that quantizes.
#pragma once

namespace qla {
namespace {

// Added to a number below 2^22, it leaves that number rounded to nearest even in the low bits of
// the sum, in two's complement: with the scale in an fma, one instruction quantizes.
constexpr float kRound = 0x1.8p23f;

}  // namespace
}  // namespace qla
