// The facts of every weight format, for those who are not compiled for an instruction set.
#include "weight_formats.h"

#include "simd/ref.h"
//
#include "weight_format_w2a8.h"
#include "weight_format_w8a8.h"

namespace qla {
namespace {

template <typename Format>
constexpr WeightFormatInfo kInfo = {Format::kGemm, Format::kPacked, Format::kBlockBytes,
                                    Format::shape, Format::column_sums};

constexpr WeightFormatInfo kInfos[kWeightFormats] = {kInfo<W8A8>,
                                                     kInfo<W2A8>};  // in the order of the enum

}  // namespace

const WeightFormatInfo& weight_format(WeightFormat format) {
  return kInfos[static_cast<int>(format)];
}

size_t find_no_weight(const int8_t* codes, size_t size) {
  const auto holds_3 = [&](size_t i) { return (codes[i] & codes[i] >> 1 & 0x55) != 0; };
  constexpr size_t kRun = 4096;  // in which the compiler's vectors look for any
  size_t i = 0;
  for (bool found = false; i + kRun <= size; i += kRun) {
    for (size_t j = i; j < i + kRun; ++j) found |= holds_3(j);
    if (found) break;
  }
  while (i < size && !holds_3(i)) ++i;
  return i;
}

void unpack_row(const int8_t* codes, int n, int8_t* weights) {
  for (int i = 0; i < n; i += 64, codes += 16) {
    for (int j = 0; j < 4; ++j) {
      for (int b = 0; b < 16; ++b) {
        weights[i + 16 * j + b] = static_cast<int8_t>((codes[b] >> (2 * j) & 3) - 1);
      }
    }
  }
}

}  // namespace qla
