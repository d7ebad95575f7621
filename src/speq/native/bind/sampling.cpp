// Python face of the draws of tokens.
#include "step/sampling.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>

#include <utility>

#include "bind/arrays.h"
#include "bind/released.h"

namespace nb = nanobind;
using namespace speq;

void bind_sampling(nb::module_& m) {
    m.def(
        "draw",
        [](const Vector<const float>& logits, double temperature, int64_t top_k, double top_p, double min_p,
           uint64_t seed, uint64_t position, bool with_confidence) {
            require(logits.shape(0) > 0, "logits are empty");
            require_aligned(logits);
            const Draw how = checked({temperature, top_k, top_p, min_p, seed, position});
            const Released released;
            const Drawn drawn = draw(logits.data(), logits.shape(0), how, with_confidence);
            return std::pair(drawn.token, drawn.confidence);
        },
        nb::arg("logits"), nb::arg("temperature"), nb::arg("top_k"), nb::arg("top_p"), nb::arg("min_p"),
        nb::arg("seed"), nb::arg("position"), nb::arg("with_confidence"),
        "Draw from float32 logits: (token, confidence), token -1 if any logit is not finite.");
}
