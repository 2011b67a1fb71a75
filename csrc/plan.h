// The static description of a mixed sum: which ops run on which edge. fastdarts/ops/operators.py encodes it (MixedPlan.encoded).
#pragma once
#include <ATen/ATen.h>

#include <vector>

namespace fastdarts {

enum class Kind : int64_t { max_pool = 1, avg_pool = 2, skip = 3, sep_conv = 4, dil_conv = 5 };

struct Op {
  int64_t column;             // of the op weights
  Kind kind;
  int64_t kernel, dilation;
  int64_t param, norm;        // index of its first parameter and of its first batch norm
};

struct Edge {
  int64_t source, node, stride;  // state numbers: inputs first, then nodes
  std::vector<Op> ops;
};

struct Plan {
  int64_t inputs, nodes;
  int64_t groups;  // K of partial channels, or 1
  int64_t params = 0, norms = 0;
  std::vector<Edge> edges;

  explicit Plan(at::IntArrayRef code) {
    size_t at = 0;
    const auto next = [&] {
      TORCH_CHECK_VALUE(at < code.size(), "plan ends too early, after ", code.size(), " numbers");
      return code[at++];
    };
    inputs = next();
    nodes = next();
    groups = next();
    const int64_t count = next();
    TORCH_CHECK_VALUE(inputs > 0 && nodes > 0 && groups > 0 && count >= 0, "plan: inputs, nodes and K must be positive");
    for (int64_t e = 0; e < count; ++e) {
      Edge edge{next(), next(), next(), {}};
      TORCH_CHECK_VALUE(edge.source >= 0 && edge.source < edge.node && edge.node >= inputs && edge.node < inputs + nodes &&
                            (edge.stride == 1 || (edge.stride == 2 && edge.source < inputs)),
                        "plan: edge ", e, " from state ", edge.source, " to ", edge.node, " at stride ", edge.stride);
      for (int64_t left = next(); left > 0; --left) {
        Op op{next(), Kind(next()), next(), next(), params, norms};
        switch (op.kind) {
          case Kind::max_pool:
          case Kind::avg_pool:
            TORCH_CHECK_VALUE(op.kernel == 3, "plan: pools are 3x3");
            norms += 1;
            break;
          case Kind::skip:
            params += edge.stride == 2 ? 2 : 0;
            norms += edge.stride == 2 ? 1 : 0;
            break;
          case Kind::sep_conv:
            TORCH_CHECK_VALUE((op.kernel == 3 || op.kernel == 5 || op.kernel == 7) && op.dilation == 1, "plan: sep_conv");
            params += 4;
            norms += 2;
            break;
          case Kind::dil_conv:
            TORCH_CHECK_VALUE((op.kernel == 3 || op.kernel == 5) && op.dilation == 2, "plan: dil_conv");
            params += 2;
            norms += 1;
            break;
          default:
            TORCH_CHECK_VALUE(false, "plan: unknown kind ", int64_t(op.kind));
        }
        edge.ops.push_back(op);
      }
      edges.push_back(std::move(edge));
    }
    TORCH_CHECK_VALUE(at == code.size(), "plan holds ", code.size() - at, " numbers too many");
  }
};

}  // namespace fastdarts
