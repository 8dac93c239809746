// What the tests see of one instruction set's internals: plain functions over arrays, and the kernels themselves.
#pragma once

#include <cstdint>

#include "table.h"

namespace lt {

// The largest error of a function against the truth in units of the last place, and the bits of the first number of the
// vector that had it.
struct Worst {
  double error;
  uint32_t bits;
};

template <class A> struct Numbers1 {
  void (*exp)(const A* from, A* to, int64_t count);
  void (*log)(const A* from, A* to, int64_t count);      // of at least 1
  void (*log_one)(const A* from, A* to, int64_t count);  // log(1 + x) of 0 to 1
  A (*sum)(const A* vector);
  A (*largest)(const A* vector);
  A (*merge)(const A* u, const int64_t* sizes, int64_t blocks);
  int width;
};

struct Probe {
  const char* name;
  Numbers1<float> single;
  Numbers1<double> twice;
  Worst (*worst[3])(uint32_t first, uint32_t stride, int64_t count, const double* truth);  // exp, log, log_one
  int64_t (*exp_others)(uint32_t first, uint32_t stride, int64_t count, float wanted);
  void (*load[2])(const uint16_t* from, float* to, int64_t count);  // bf16, fp16
  void (*store[2])(const float* from, uint16_t* to, int64_t count);
  RowsKernel rows_forward[4], rows_backward[4], rows_offset[4];
  PlainKernel rows_plain[4];
  void (*gram_units[4])(const Units&, int64_t begin, int64_t end);
  TileKernel gram_screen;
  ListedKernel gram_verify[4];
  void (*bound)(const float* error, int64_t count, int64_t d, float* to);  // [count, count]
  void (*transpose)(const float* rows, int64_t d, float* out, int64_t line, int64_t begin, int64_t end);
};

namespace generic { extern const Probe probe; }
namespace avx2 { extern const Probe probe; }
namespace avx512 { extern const Probe probe; }

}  // namespace lt
