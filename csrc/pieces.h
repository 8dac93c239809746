// Work in pieces, which the threads of one parallel region take as they get to them.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace lt {

// Another process, such as a data loader's worker, may take a thread's core away in the middle of its work. A thread with
// a share fixed beforehand would keep all others waiting until it is back; here they do what it has not begun.
class Pieces {
 public:
  Pieces(int64_t count, int64_t size) : count_(count), size_(size) {}

  // Whether there is another piece, [begin, end).
  bool take(int64_t& begin, int64_t& end) {
    begin = next_.fetch_add(size_, std::memory_order_relaxed);
    end = std::min(begin + size_, count_);
    return begin < count_;
  }

 private:
  const int64_t count_, size_;
  std::atomic<int64_t> next_{0};
};

// Runs `worker(pieces)` on as many threads as `count` things are worth, at least `grain` of them each.
template <class Worker> void with_workers(int64_t count, int64_t grain, const Worker& worker) {
  grain = std::max<int64_t>(grain, 1);
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), (count + grain - 1) / grain);
  const int64_t share = 8;  // pieces for each thread: the last one to end is late by no more than such a part
  Pieces pieces(count, threads <= 1 ? count : std::max(grain, count / (share * threads)));
  if (threads <= 1) return worker(pieces);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) { worker(pieces); });
}

// Runs `body(begin, end)` over all of [0, count). What it computes must not depend on where the pieces begin and end.
template <class Body> void in_pieces(int64_t count, int64_t grain, const Body& body) {
  with_workers(count, grain, [&](Pieces& pieces) {
    for (int64_t begin, end; pieces.take(begin, end);) body(begin, end);
  });
}

}  // namespace lt
