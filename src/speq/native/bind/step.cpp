// Python face of the step: matrices over NumPy memory, operators, and run(). Whatever could lead outside of an array is
// checked here or by the operators, and arrays live as long as what reads them.
#include "step/step.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <limits>
#include <memory>
#include <span>
#include <utility>

#include "bind/arrays.h"
#include "bind/released.h"
#include "bind/weight.h"
#include "step/operators.h"

namespace nb = nanobind;
using namespace speq;

namespace {

struct HeldArrays {
    Held held;
};

// The arrays go after the step, and so after its threads.
struct BoundStep : HeldArrays, Step {
    using Step::Step;
};

HeldWeight make_matrix(const SplitFormat& format, std::tuple<int64_t, int64_t> shape, const Array<const uint8_t>& codes,
                       const Array<const uint8_t>& residual, const Array<const uint16_t>& scales,
                       const Array<const uint32_t>& escape_rows, const Array<const uint16_t>& escape_columns,
                       const Array<const uint16_t>& escape_values, const Array<const uint16_t>& table) {
    HeldWeight matrix{checked_weight(format, std::get<0>(shape), std::get<1>(shape),
                                     {codes, residual, scales, escape_rows, escape_columns, escape_values, table}),
                      {}};
    hold(matrix.planes, codes, residual, scales, escape_rows, escape_columns, escape_values);
    return matrix;
}

using NormArgument = std::tuple<nb::object, float>;  // (float32 [width] or None, eps)

// The values of a vector that the step then reads in place, as many as stand there.
std::span<const float> read_in_place(BoundStep& step, nb::handle array) {
    const auto vector = nb::cast<Vector<const float>>(array);
    require_aligned(vector);
    hold(step.held, vector);
    return {vector.data(), vector.size()};
}

Norm make_norm(BoundStep& step, const NormArgument& argument) {
    const auto& [weight, eps] = argument;
    if (weight.is_none()) return {};
    const std::span<const float> values = read_in_place(step, weight);
    return {values.data(), eps, values.size()};
}

LinearPart make_part(BoundStep& step, int matrix, int column, const nb::object& bias) {
    if (bias.is_none()) return {matrix, column, {}, false};
    return {matrix, column, read_in_place(step, bias), true};
}

std::unique_ptr<BoundStep> make_step(const std::string& isa, int threads, int max_tokens,
                                     Array<uint16_t, nb::ndim<5>> keys, Array<uint16_t, nb::ndim<5>> values,
                                     std::vector<float> inverse_frequencies, float rotary_scale, int vocab_size) {
    for (size_t i = 0; i < 5; ++i) {
        require(keys.shape(i) == values.shape(i), "keys and values differ in shape");
        require(keys.shape(i) >= 1 && keys.shape(i) <= static_cast<size_t>(std::numeric_limits<int>::max()),
                "the KV cache has a size that is not possible");
    }
    require(keys.shape(3) == kAttentionChunk, "a page of the KV cache has another size than a chunk of attention");
    require_aligned(keys, values);
    require(threads >= 1, "threads must be positive");
    require(max_tokens >= 1 && max_tokens <= kMostTokens,
            "max_tokens must be between 1 and " + std::to_string(kMostTokens));
    require(vocab_size >= 1, "the vocabulary must have a token");
    require(inverse_frequencies.size() * 2 == keys.shape(4), "a head needs a rotary frequency for each pair");
    const Cache cache{keys.data(),
                      values.data(),
                      static_cast<int>(keys.shape(0)),
                      static_cast<int>(keys.shape(1)),
                      static_cast<int>(keys.shape(2)),
                      static_cast<int>(keys.shape(4))};
    auto step = std::make_unique<BoundStep>(isa, threads, max_tokens, cache, std::move(inverse_frequencies),
                                            rotary_scale, vocab_size);
    hold(step->held, keys, values);
    return step;
}

// Depths of the rows of a span by the parents of its rows, and what follows from them.
void add_tree(Span& span, const int32_t* parents) {
    span.depths.resize(span.count);
    span.deepest = 0;
    span.is_chain = true;
    for (int i = 0; i < span.count; ++i) {
        require(parents[i] >= -1 && parents[i] < i, "a row's parent must stand before it");
        span.depths[i] = parents[i] < 0 ? 0 : span.depths[parents[i]] + 1;
        span.deepest = std::max(span.deepest, span.depths[i]);
        span.is_chain = span.is_chain && parents[i] == i - 1;
    }
    if (span.is_chain) return span.depths.clear();
    require(span.count <= kTreeRows, "too many rows for a tree");
    span.ancestors.resize(static_cast<size_t>(span.count) * (span.deepest + 1));
    for (int i = 0; i < span.count; ++i) {
        int32_t* path = span.ancestors.data() + static_cast<size_t>(i) * (span.deepest + 1);
        if (parents[i] >= 0) std::copy_n(span.path(parents[i]), span.depths[i], path);
        path[span.depths[i]] = i;
    }
}

using Integers = Vector<const int32_t>;

// A pass, whose arrays are copied: what was checked must be what is computed, whoever writes to them meanwhile.
// spans: [n, 2] start and count; pages: those of all spans one after the other, as many for each as its slots need;
// parents: for each row, or empty where all spans are chains.
std::shared_ptr<Pass> make_pass(const BoundStep& step, Integers tokens, Table<const int32_t> spans, Integers pages,
                                Integers parents, Integers wanted, bool draft) {
    require(step.is_bound(), "bind() comes before run()");
    require_aligned(tokens, spans, pages, parents, wanted);
    auto pass = std::make_shared<Pass>();
    pass->tokens.assign(tokens.data(), tokens.data() + tokens.size());
    require(pass->count() >= 1 && pass->count() <= step.max_tokens(), "too many tokens for one pass, or none");
    for (int32_t token : pass->tokens)
        require(token >= 0 && token < step.vocab_size(), "a token id lies outside the vocabulary");
    require(parents.size() == 0 || parents.size() == tokens.size(), "every row needs a parent");
    require(spans.shape(1) == 2, "a span is a start and a count");
    const std::vector<int32_t> all_parents(parents.data(), parents.data() + parents.size());
    int first = 0;
    size_t page = 0;
    for (size_t i = 0; i < spans.shape(0); ++i, first = pass->spans.back().first + pass->spans.back().count) {
        const int32_t start = spans.data()[2 * i], count = spans.data()[2 * i + 1];
        require(start >= 0 && count >= 1 && count <= pass->count() - first, "the spans do not fit the rows");
        require(start <= std::numeric_limits<int32_t>::max() - count, "a span begins too late");
        Span span{first, count, start, count - 1, true, {}, {}, {}};
        const size_t needed = (static_cast<size_t>(span.end()) + kAttentionChunk - 1) / kAttentionChunk;
        require(needed <= pages.size() - page, "a span has too few pages");
        span.pages.assign(pages.data() + page, pages.data() + page + needed);
        for (int32_t p : span.pages) require(p >= 0 && p < step.cache().pages, "there is no such page");
        page += needed;
        if (!all_parents.empty()) add_tree(span, all_parents.data() + first);
        for (int r = 0; r < count; ++r) pass->positions.push_back(start + (span.is_chain ? r : span.depths[r]));
        pass->spans.push_back(std::move(span));
    }
    require(first == pass->count() && page == pages.size(), "the spans do not fit the rows");
    pass->wanted.assign(wanted.data(), wanted.data() + wanted.size());
    for (size_t i = 0; i < pass->wanted.size(); ++i)
        require(pass->wanted[i] >= (i ? pass->wanted[i - 1] + 1 : 0) && pass->wanted[i] < pass->count(),
                "wanted rows must be ascending rows of the pass");
    pass->level = draft ? Level::draft : Level::exact;
    return pass;
}

using DrawTuple = std::tuple<double, int64_t, double, double, uint64_t, uint64_t, int>;

void run(BoundStep& step, Integers tokens, Table<const int32_t> spans, Integers pages, Integers parents,
         Integers wanted, bool draft, const std::vector<DrawTuple>& draws, bool confidences,
         const std::vector<int>& taps, size_t first, size_t last) {
    auto pass = make_pass(step, tokens, spans, pages, parents, wanted, draft);
    require(draws.empty() || draws.size() == pass->wanted.size(), "every wanted row needs a draw, or none");
    for (const auto& [temperature, top_k, top_p, min_p, seed, position, likely] : draws)
        pass->draws.push_back(checked({temperature, top_k, top_p, min_p, seed, position, likely}));
    pass->confidences = confidences;
    pass->taps.resize(step.taps());
    for (int tap : taps) {
        require(tap >= 0 && tap < step.taps(), "there is no such tap");
        pass->taps[tap] = 1;
    }
    require(first <= last && last <= step.operators(), "there are no such operators");
    pass->first = first;
    pass->last = last;
    const Released released;
    step.run(std::move(pass));
}

// The logits of the rows that the last pass wanted.
nb::object logits(nb::handle self) {
    auto& step = nb::cast<BoundStep&>(self);
    const Output output = [&] {
        const Released released;
        return step.output();
    }();
    const nb::capsule owner(new std::shared_ptr<float[]>(output.logits),
                            [](void* p) noexcept { delete static_cast<std::shared_ptr<float[]>*>(p); });
    const nb::ndarray<nb::numpy, const float> view(
        output.logits.get(), {static_cast<size_t>(output.rows), static_cast<size_t>(step.vocab_size())}, owner);
    return nb::cast(view);
}

nb::object buffer_view(nb::handle self, const BoundStep& step, const Buffer& found) {
    nb::ndarray<nb::numpy, float, nb::ndim<2>> view(
        found.data.get(), {static_cast<size_t>(step.max_tokens()), static_cast<size_t>(found.width)}, self,
        {found.stride, 1});
    return nb::cast(view);
}

// A buffer as it lies in memory: float32 [max_tokens, width].
nb::object buffer(nb::handle self, int index) {
    auto& step = nb::cast<BoundStep&>(self);
    require_buffer(step, index);
    return buffer_view(self, step, step.buffer(index));
}

nb::object tapped(nb::handle self, int index) {
    auto& step = nb::cast<BoundStep&>(self);
    require(index >= 0 && index < step.taps() && step.tap(index).data, "the tap has kept nothing");
    return buffer_view(self, step, step.tap(index));
}

}  // namespace

void bind_step(nb::module_& m) {
    m.def("available_isas", &available_isas);
    nb::class_<HeldWeight>(m, "Matrix")
        .def_static("make", &make_matrix, nb::arg("format"), nb::arg("shape"), nb::kw_only(), nb::arg("codes"),
                    nb::arg("residual"), nb::arg("scales"), nb::arg("escape_rows"), nb::arg("escape_columns"),
                    nb::arg("escape_values"), nb::arg("table"));
    nb::class_<BoundStep>(m, "Step")
        .def_static("make", &make_step, nb::arg(), nb::arg(), nb::arg(), nb::arg().noconvert(), nb::arg().noconvert(),
                    nb::arg(), nb::arg(), nb::arg())
        .def("add_buffer", [](BoundStep& s, int width) { return s.add_buffer(width); })
        .def("add_matrix",
             [](BoundStep& s, const HeldWeight& matrix) {
                 s.held.insert(s.held.end(), matrix.planes.begin(), matrix.planes.end());
                 return s.add_matrix(matrix.weight);
             })
        .def("embed", [](BoundStep& s, int matrix, int out) { add_embed(s, matrix, out); })
        .def("linear",
             [](BoundStep& s, int x, NormArgument norm, const std::vector<std::tuple<int, int, nb::object>>& parts,
                int out, bool accumulate) {
                 std::vector<LinearPart> list;
                 for (const auto& [matrix, column, bias] : parts) list.push_back(make_part(s, matrix, column, bias));
                 add_linear(s, x, make_norm(s, norm), list, out, accumulate);
             })
        .def(
            "gated_linear",
            [](BoundStep& s, int x, NormArgument norm, int gate, int up, int out, nb::object gate_bias,
               nb::object up_bias) {
                add_gated_linear(s, x, make_norm(s, norm), make_part(s, gate, 0, gate_bias),
                                 make_part(s, up, 0, up_bias), out);
            },
            nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg().none())
        .def("attention",
             [](BoundStep& s, int qkv, int out, int layer, int heads, int kv_heads, int head_dim, float scale,
                int window, NormArgument q_norm, NormArgument k_norm) {
                 add_attention(s, {qkv, out, layer, heads, kv_heads, head_dim, scale, window, make_norm(s, q_norm),
                                   make_norm(s, k_norm)});
             })
        .def("head",
             [](BoundStep& s, int x, NormArgument norm, int matrix) { add_lm_head(s, x, make_norm(s, norm), matrix); })
        .def("sample", [](BoundStep& s) { add_sample(s); })
        .def("tap", [](BoundStep& s, int x) { return add_tap(s, x); })
        .def("bind", [](BoundStep& s) { s.bind(); })
        .def("run", &run)
        .def("drawn",
             [](BoundStep& s) {
                 const Released released;
                 std::vector<Told> all;
                 for (const auto& d : s.draws()) all.push_back(told(d));
                 return all;
             })
        .def("logits", &logits)
        .def("buffer", &buffer)
        .def("tapped", &tapped)
        .def_prop_ro("operators", [](const BoundStep& s) { return s.operators(); })
        .def_prop_ro("isa", [](const BoundStep& s) { return std::string(s.isa()); })
        .def_prop_ro("threads", [](const BoundStep& s) { return s.threads(); });
}
