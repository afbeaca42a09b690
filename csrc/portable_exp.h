// exp and tanh in double precision, by plain arithmetic alone. Not libm's: that one picks a variant
// by CPU, and the last bit of a score must not depend on the machine.
#pragma once

#include <cmath>

namespace qla {

// e^x for x <= 0, to about 1e-15.
inline double exp_of_negative(double x) {
  if (x < -700.0) return 0.0;
  const double n = std::floor(x * 1.4426950408889634 + 0.5);
  const double r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  double sum = 1.0;
  for (int term = 13; term > 0; --term) sum = 1.0 + sum * r / term;  // Taylor: |r| <= ln(2) / 2
  return std::ldexp(sum, static_cast<int>(n));
}

inline double portable_tanh(double x) {
  const double e = exp_of_negative(-2.0 * std::fabs(x));
  return std::copysign((1.0 - e) / (1.0 + e), x);
}

}  // namespace qla
