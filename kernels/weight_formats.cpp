// The facts of every weight format, for those who are not compiled for an instruction set.
#include "weight_formats.h"

#include "simd/ref.h"
//
#include "weight_format_w8a8.h"

namespace qla {
namespace {

template <typename Format>
constexpr WeightFormatInfo kInfo = {Format::kGemm, Format::kBlockBytes, Format::shape,
                                    Format::column_sums};

constexpr WeightFormatInfo kInfos[kWeightFormats] = {kInfo<W8A8>};  // in the order of the enum

}  // namespace

const WeightFormatInfo& weight_format(WeightFormat format) {
  return kInfos[static_cast<int>(format)];
}

}  // namespace qla
