// Python bindings of the kernels' internals, for test_whitebox.py. Margins are compiled here, as the package does it,
// for every machine.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "margins.h"
#include "probe.h"

namespace py = pybind11;
using namespace lt;

template <class A> using Array = py::array_t<A, py::array::c_style | py::array::forcecast>;

namespace {

std::vector<const Probe*> probes() {
  std::vector<const Probe*> found{&generic::probe};
#ifndef LT_GENERIC_ONLY
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&avx2::probe);
  bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (wide) found.push_back(&avx512::probe);
#endif
  return found;
}

const Probe& probe(const std::string& name) {
  for (const Probe* one : probes())
    if (name == one->name) return *one;
  throw std::invalid_argument("no instruction set " + name);
}

template <class A> const Numbers1<A>& numbers(const Probe& probe);
template <> const Numbers1<float>& numbers(const Probe& probe) { return probe.single; }
template <> const Numbers1<double>& numbers(const Probe& probe) { return probe.twice; }

template <class A> void bind_numbers(py::module_& m) {
  auto define = [&](const char* name, auto function) {
    m.def(name, [function](const std::string& isa, py::array_t<A, py::array::c_style> x) {
      py::array_t<A> out(x.size());
      (numbers<A>(probe(isa)).*function)(x.data(), out.mutable_data(), x.size());
      return out;
    }, py::arg("isa"), py::arg("x").noconvert());
  };
  define("exp", &Numbers1<A>::exp), define("log", &Numbers1<A>::log), define("log_one", &Numbers1<A>::log_one);
  m.def("sum_and_largest", [](const std::string& isa, py::array_t<A, py::array::c_style> x) {
    const Numbers1<A>& of = numbers<A>(probe(isa));
    if (x.size() != of.width) throw std::invalid_argument("x must be one vector");
    return std::make_pair(of.sum(x.data()), of.largest(x.data()));
  }, py::arg("isa"), py::arg("x").noconvert());
  m.def("merge", [](const std::string& isa, py::array_t<A, py::array::c_style> u, Array<int64_t> sizes) {
    return numbers<A>(probe(isa)).merge(u.data(), sizes.data(), sizes.size());
  }, py::arg("isa"), py::arg("u").noconvert(), py::arg("sizes"));
  // value, slope and slope for the norm of phi for each cosine: [3, n]
  m.def("angular", [](py::array_t<A, py::array::c_style> own, double margin, bool hard, double instance, bool guard) {
    py::array_t<A> out({py::ssize_t(3), own.size()});
    for (py::ssize_t i = 0; i < own.size(); ++i) {
      Phi<A> p = angular<A>(own.data()[i], A(margin), hard, A(instance), guard);
      out.mutable_at(0, i) = p.value, out.mutable_at(1, i) = p.slope, out.mutable_at(2, i) = p.norm_slope;
    }
    return out;
  }, py::arg("own").noconvert(), py::arg("margin"), py::arg("hard"), py::arg("instance"), py::arg("guard"));
  m.def("sphere", [](py::array_t<A, py::array::c_style> own, int order, Array<A> norm, double annealing) {
    py::array_t<A> out({py::ssize_t(3), own.size()});
    for (py::ssize_t i = 0; i < own.size(); ++i) {
      Phi<A> p = sphere<A>(own.data()[i], order, A(annealing), norm.data()[i]);
      out.mutable_at(0, i) = p.value, out.mutable_at(1, i) = p.slope, out.mutable_at(2, i) = p.norm_slope;
    }
    return out;
  }, py::arg("own").noconvert(), py::arg("order"), py::arg("norm"), py::arg("annealing") = 0.0);
  // the loss and its slopes of one row for each entry of v = rest - own: [6, n]
  m.def("margin_rows", [](py::array_t<A, py::array::c_style> rest, py::array_t<A, py::array::c_style> own, double gamma) {
    Margins margins{1.0, kPlain, 0.0, 0.0, false, gamma, 0.0, 0.0};
    py::array_t<A> out({py::ssize_t(6), own.size()});
    for (py::ssize_t i = 0; i < own.size(); ++i) {
      Result<A> r = margins.row<A>({rest.data()[i], 0, own.data()[i], 0, 0, 1, 0, 0, 0}, 0, true, false, A(1));
      A values[] = {r.loss, r.d_rest, r.d_own, r.d_offset, r.d_norm, r.d_mean};
      for (int k = 0; k < 6; ++k) out.mutable_at(k, i) = values[k];
    }
    return out;
  }, py::arg("rest").noconvert(), py::arg("own").noconvert(), py::arg("gamma"));
}

// One call of the row kernels, from a dict of arrays: see `rows` in test_whitebox_rows.py.
struct RowsCall {
  Rows args{};
  int type;
  py::dict given;

  const void* data(const char* name) {
    return given.contains(name) ? py::array(given[name]).data() : nullptr;
  }
  Lookup lookup(const char* name) {
    if (!given.contains(name)) return {};
    py::array table = given[name];
    return {table.data(), table.shape(0), table.shape(1), nullptr};
  }
  explicit RowsCall(py::dict values) : type(values["type"].cast<int>()), given(values) {
    py::array logits = given["logits"], target = given["target"];
    args.logits = logits.data(), args.n = logits.shape(0), args.c = args.stride = logits.shape(1);
    args.target = static_cast<const int64_t*>(target.data()), args.slots = target.shape(1);
    args.start = given["start"].cast<int64_t>(), args.ignore_index = -100, args.scale = given["scale"].cast<double>();
    args.row_scale = data("row_scale"), args.column_scale = data("column_scale");
    args.offset = lookup("offset"), args.share = lookup("share");
    args.rest = data("rest"), args.top = data("top"), args.d_rest = data("d_rest"), args.d_own = data("d_own"), args.d_mean = data("d_mean");
    args.d_own_offset = data("d_own_offset");
  }
  void* out(const char* name) { return given.contains(name) ? py::array(given[name]).mutable_data() : nullptr; }
};

void run_rows(const std::string& isa, py::dict values) {
  RowsCall call(values);
  const Probe& with = probe(isa);
  Rows& args = call.args;
  args.rest_out = call.out("rest_out"), args.top_out = call.out("top_out"), args.own_out = call.out("own_out"), args.rival_out = call.out("rival_out");
  args.mean_out = call.out("mean_out"), args.shares_out = call.out("shares_out");
  args.d_logits = call.out("d_logits"), args.d_offset = call.out("d_offset");
  if (args.rest_out) with.rows_forward[call.type](args, 0, args.n);
  if (args.d_logits) with.rows_backward[call.type](args, 0, args.n);
  if (args.d_offset) with.rows_offset[call.type](args, 0, args.c);
}

// The short rows' losses and numbers; with d_logits their gradient too.
void run_plain(const std::string& isa, py::dict values) {
  RowsCall call(values);
  call.args.d_logits = call.out("d_logits");
  Plain plain{call.data("weight"), values["divisor"].cast<double>(), call.out("losses"), call.out("numbers")};
  probe(isa).rows_plain[call.type](call.args, plain, 0, call.args.n);
}

// The rounded rows [c, d], their steps, the lengths of what rounding took away, and 1 / |w|.
py::tuple units(const std::string& isa, py::array weight, int type) {
  py::ssize_t c = weight.shape(0), d = weight.shape(1);
  py::array_t<int8_t> unit({c, d});
  py::array_t<float> scale(c), step(c), error(c);
  Units args{weight.data(), d, d, unit.mutable_data(), scale.mutable_data(), step.mutable_data(), error.mutable_data()};
  probe(isa).gram_units[type](args, 0, c);
  return py::make_tuple(unit, step, error, scale);
}

py::array_t<float> bounds(const std::string& isa, Array<float> error, int64_t d) {
  py::array_t<float> out({error.size(), error.size()});
  probe(isa).bound(error.data(), error.size(), d, out.mutable_data());
  return out;
}

// Which pairs of all rows survive the screening (1), and every pair's cosine as the verification computes it.
py::tuple screen(const std::string& isa, py::array weight, int type, Array<int32_t> product, Array<float> step,
                 Array<float> error, Array<float> scale, double threshold) {
  py::ssize_t c = weight.shape(0);
  Tile tile{product.data(), c, c, c, 0, 0, scale.data(), threshold, step.data(), error.data(), weight.shape(1)};
  std::vector<int64_t> begins(c + 1, 0);
  std::vector<uint64_t> passed(c * tile.words());
  tile.begins = begins.data(), tile.passed = passed.data();
  probe(isa).gram_screen(tile, 0, c);
  py::array_t<int8_t> survived({c, c});
  py::array_t<float> value({c, c});
  std::fill_n(survived.mutable_data(), c * c, int8_t(0));
  for (py::ssize_t i = 0; i < c; ++i) {
    int64_t first = tile.first_column(i), number = 0;
    for (int64_t j = first; j < c; ++j) {
      bool bit = passed[i * tile.words() + (j - first) / 64] >> (j - first) % 64 & 1;
      survived.mutable_at(i, j) = bit, number += bit;
    }
    if (number != begins[i + 1]) throw std::runtime_error("the number is not that of the bits");
  }
  std::vector<int32_t> first(c * c), second(c * c), order(c);  // then all pairs
  for (py::ssize_t k = 0; k < c * c; ++k) first[k] = int32_t(k / c), second[k] = int32_t(k % c);
  for (py::ssize_t i = 0; i < c; ++i) begins[i + 1] = (i + 1) * c, order[i] = int32_t(c - 1 - i);
  probe(isa).gram_verify[type]({weight.data(), weight.shape(1), weight.shape(1), scale.data(), first.data(),
                                second.data(), begins.data(), order.data(), value.mutable_data()}, 0, c);
  return py::make_tuple(survived, value);
}

// The rows [begin, end) of `from` in columns of `out`.
void transpose_rows(const std::string& isa, py::array_t<float> from, py::array_t<float> out, int64_t begin,
                    int64_t end) {
  const int64_t line = out.strides(0) / int64_t(sizeof(float));
  probe(isa).transpose(from.data(), from.shape(1), out.mutable_data(), line, begin, end);
}

}  // namespace

PYBIND11_MODULE(lt_whitebox, m) {
  m.def("instruction_sets", [] {
    py::list names;
    for (const Probe* one : probes()) names.append(one->name);
    return names;
  });
  m.def("width", [](const std::string& isa) { return probe(isa).single.width; });
  bind_numbers<float>(m);
  bind_numbers<double>(m);
  m.def("worst", [](const std::string& isa, int function, uint32_t first, uint32_t stride, Array<double> truth) {
    Worst worst = probe(isa).worst[function](first, stride, truth.size(), truth.data());
    return std::make_pair(worst.error, worst.bits);
  });
  m.def("exp_others", [](const std::string& isa, uint32_t first, uint32_t stride, int64_t count, float wanted) {
    return probe(isa).exp_others(first, stride, count, wanted);
  });
  m.def("load", [](const std::string& isa, int half, Array<uint16_t> from) {
    py::array_t<float> out(from.size());
    probe(isa).load[half](from.data(), out.mutable_data(), from.size());
    return out;
  });
  m.def("store", [](const std::string& isa, int half, Array<float> from) {
    py::array_t<uint16_t> out(from.size());
    probe(isa).store[half](from.data(), out.mutable_data(), from.size());
    return out;
  });
  m.def("run_rows", &run_rows);
  m.def("run_plain", &run_plain);
  m.def("transpose", &transpose_rows, py::arg("isa"), py::arg("rows").noconvert(), py::arg("out").noconvert(),
        py::arg("begin"), py::arg("end"));
  m.def("units", &units);
  m.def("bounds", &bounds);
  m.def("screen", &screen);
}
