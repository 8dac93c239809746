// A queue of pieces of work: each thread of a parallel region takes the next piece when it has finished its last one.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace lt {

// Another process, such as a data loader's worker, may take a thread's core away in the middle of its work. If each
// thread had a fixed share, all others would then wait for this one; here they take over the pieces it has not begun.
class Pieces {
 public:
  Pieces(int64_t count, int64_t size) : count_(count), size_(size) {}

  // Takes the next piece, [begin, end); false if none is left.
  bool take(int64_t& begin, int64_t& end) {
    begin = next_.fetch_add(size_, std::memory_order_relaxed);
    end = std::min(begin + size_, count_);
    return begin < count_;
  }

 private:
  const int64_t count_, size_;
  std::atomic<int64_t> next_{0};
};

// Runs `worker(pieces)` once on each thread, and on fewer threads where one would get less than `grain` of the `count`.
template <class Worker> void with_workers(int64_t count, int64_t grain, const Worker& worker) {
  grain = std::max<int64_t>(grain, 1);
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), (count + grain - 1) / grain);
  const int64_t pieces_each = 8;  // for each thread, so that they finish within an eighth of a share of each other
  Pieces pieces(count, threads <= 1 ? count : std::max(grain, count / (pieces_each * threads)));
  if (threads <= 1) return worker(pieces);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) { worker(pieces); });
}

// Runs `body(begin, end)` over all of [0, count). Its results must not depend on how the threads divide this range.
template <class Body> void in_pieces(int64_t count, int64_t grain, const Body& body) {
  with_workers(count, grain, [&](Pieces& pieces) {
    for (int64_t begin, end; pieces.take(begin, end);) body(begin, end);
  });
}

}  // namespace lt
