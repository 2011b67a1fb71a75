// The static description of a mixed sum: which ops run on which edge. fastdarts/ops/plan.py encodes it (MixedPlan.encoded) and holds
// the same rules. Every number of a plan is checked here, before anything is computed from it.
#pragma once
#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <limits>
#include <vector>

namespace fastdarts {

enum class Kind : int64_t { max_pool = 1, avg_pool = 2, skip = 3, sep_conv = 4, dil_conv = 5, pointwise = 6 };

// The largest number of a plan: far more than any cell needs, and so little that sums of them fit.
constexpr int64_t kMostOfPlan = (int64_t(1) << 20) - 1;

// The product of sizes, none of them negative; ValueError where it does not fit.
inline int64_t checked_product(const char* what, std::initializer_list<int64_t> sizes) {
  int64_t product = 1;
  for (const int64_t size : sizes)
    TORCH_CHECK_VALUE(!__builtin_mul_overflow(product, size, &product), what, " would have too many elements");
  // Some times as many bytes have to fit as well.
  TORCH_CHECK_VALUE(product <= std::numeric_limits<int64_t>::max() >> 12, what, " would have too many elements");
  return product;
}

struct Op {
  int64_t column;  // of the op weights
  Kind kind;
  int64_t kernel, dilation;
  int64_t param, norm;    // index of its first parameter and of its first batch norm
  int64_t params, norms;  // how many it has: a pool one norm or none

  bool is_pool() const { return kind == Kind::max_pool || kind == Kind::avg_pool; }
  // Numbers that its i-th parameter holds where the op has c channels.
  int64_t param_size(int64_t i, int64_t c) const {
    if (kind == Kind::skip) return checked_product("a parameter", {c / 2, c});
    const bool depthwise = kind != Kind::pointwise && i % 2 == 0;
    return checked_product("a parameter", {c, depthwise ? kernel * kernel : c});
  }
};

struct Edge {
  int64_t source, node, stride;  // state numbers: inputs first, then nodes
  std::vector<Op> ops;
};

// The numbers of a plan, one after the other.
class PlanReader {
 public:
  explicit PlanReader(c10::IntArrayRef code) : code_(code) {}

  int64_t next(const char* what, int64_t least) {
    TORCH_CHECK_VALUE(at_ < code_.size(), "plan ends too early, after ", code_.size(), " numbers");
    const int64_t number = code_[at_++];
    TORCH_CHECK_VALUE(number >= least && number <= kMostOfPlan, "plan: ", what, " must be from ", least, " to ", kMostOfPlan,
                      "; got ", number);
    return number;
  }

  void check_end() const { TORCH_CHECK_VALUE(at_ == code_.size(), "plan holds ", code_.size() - at_, " numbers too many"); }

 private:
  c10::IntArrayRef code_;
  size_t at_ = 0;
};

struct Plan {
  int64_t inputs, nodes;
  int64_t groups;  // K of partial channels, or 1
  int64_t params = 0, norms = 0;
  std::vector<Edge> edges;

  explicit Plan(c10::IntArrayRef code) {
    PlanReader from(code);
    inputs = from.next("inputs", 1);
    nodes = from.next("nodes", 1);
    groups = from.next("K", 1);
    for (int64_t left = from.next("edges", 0); left > 0; --left) edges.push_back(read_edge(from));
    from.check_end();
  }

  // Whether an edge leaves the state.
  bool reads(int64_t state) const {
    return std::any_of(edges.begin(), edges.end(), [&](const Edge& e) { return e.source == state; });
  }
  bool reads_nodes() const {
    return std::any_of(edges.begin(), edges.end(), [&](const Edge& e) { return e.source >= inputs; });
  }

 private:
  Edge read_edge(PlanReader& from) {
    Edge edge{};
    edge.source = from.next("source", 0);
    edge.node = from.next("node", inputs);
    edge.stride = from.next("stride", 1);
    TORCH_CHECK_VALUE(edge.source < edge.node && edge.node < inputs + nodes &&
                          (edge.stride == 1 || (edge.stride == 2 && edge.source < inputs)),
                      "plan: no edge goes from state ", edge.source, " to ", edge.node, " at stride ", edge.stride);
    for (int64_t left = from.next("ops", 0); left > 0; --left) {
      const Op op = read_op(from, edge.stride);
      for (const Op& other : edge.ops)
        TORCH_CHECK_VALUE(op.column != other.column, "plan: an edge has column ", op.column, " twice");
      params += op.params;
      norms += op.norms;
      edge.ops.push_back(op);
    }
    return edge;
  }

  Op read_op(PlanReader& from, int64_t stride) const {
    Op op{};
    op.column = from.next("column", 0);
    op.kind = Kind(from.next("kind", 0));
    op.kernel = from.next("kernel", 0);
    op.dilation = from.next("dilation", 0);
    const int64_t norm = from.next("norm", 0);
    op.param = params;
    op.norm = norms;
    bool known = norm == 1;
    switch (op.kind) {
      case Kind::max_pool:
      case Kind::avg_pool:
        known = op.kernel == 3 && op.dilation == 1 && norm <= 1;
        op.norms = norm;
        break;
      case Kind::skip:
        known = known && op.kernel == 1 && op.dilation == 1;
        op.params = stride == 2 ? 2 : 0;
        op.norms = stride == 2 ? 1 : 0;
        break;
      case Kind::sep_conv:
        known = known && (op.kernel == 3 || op.kernel == 5 || op.kernel == 7) && op.dilation == 1;
        op.params = 4;
        op.norms = 2;
        break;
      case Kind::dil_conv:
        known = known && (op.kernel == 3 || op.kernel == 5) && op.dilation == 2;
        op.params = 2;
        op.norms = 1;
        break;
      case Kind::pointwise:
        known = known && op.kernel == 1 && op.dilation == 1;
        op.params = 1;
        op.norms = 1;
        break;
      default:
        known = false;
    }
    TORCH_CHECK_VALUE(known, "plan: no op has kind ", int64_t(op.kind), ", kernel ", op.kernel, ", dilation ", op.dilation,
                      ", norm ", norm);
    return op;
  }
};

}  // namespace fastdarts
