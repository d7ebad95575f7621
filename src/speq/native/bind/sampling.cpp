// Python face of the draws of tokens.
#include "step/sampling.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bind/arrays.h"
#include "bind/released.h"
#include "step/sampling_noise.h"

namespace nb = nanobind;
using namespace speq;

void bind_sampling(nb::module_& m) {
    m.def(
        "draw",
        [](const Vector<const float>& logits, double temperature, int64_t top_k, double top_p, double min_p,
           uint64_t seed, uint64_t position, int likely, bool with_confidence) {
            require(logits.shape(0) > 0, "logits are empty");
            require_aligned(logits);
            const Draw how = checked({temperature, top_k, top_p, min_p, seed, position, likely});
            const Drawn drawn = [&] {
                const Released released;
                return draw(logits.data(), logits.shape(0), how, with_confidence);
            }();
            return told(drawn);
        },
        nb::arg("logits"), nb::arg("temperature"), nb::arg("top_k"), nb::arg("top_p"), nb::arg("min_p"),
        nb::arg("seed"), nb::arg("position"), nb::arg("likely"), nb::arg("with_confidence"),
        "Draw from float32 logits: (token, confidence, most probable (token, probability)s), token -1 if any logit is "
        "not finite.");
    m.def(
        "noise",
        [](const std::vector<uint32_t>& tokens, uint64_t seed, uint64_t position) {
            std::vector<double> all;
            for (uint32_t t : tokens) all.push_back(exponential(uniform(philox(seed, position, t / 4)[t % 4])));
            return all;
        },
        "The exponential variates of tokens in the race for a position; the smallest over its probability wins.");
}
