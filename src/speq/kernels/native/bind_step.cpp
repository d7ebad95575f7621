// Python face of the step: matrices over NumPy memory (which the Python side keeps alive), operators, and run().
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <limits>
#include <stdexcept>

#include "escape_deltas.h"
#include "step.h"
#include "step_operators.h"

namespace nb = nanobind;
using namespace speq;

namespace {

template <class T, class... Shape>
using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu, Shape...>;

template <class T>
using Plane = Array<const T>;
template <class T>
using Vector = Array<const T, nb::ndim<1>>;

void require(bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
}

SplitWeight make_weight(std::tuple<int, int> shape, const std::string& dtype, int residual_bits, bool table_per_group,
                        int group_size, Plane<uint8_t> codes, Plane<uint8_t> residual, Plane<uint16_t> scales,
                        Vector<uint32_t> escape_rows, Vector<uint16_t> escape_columns, Vector<uint16_t> escape_values,
                        Vector<float> edges, Vector<uint16_t> drops, Vector<uint16_t> table, Vector<int8_t> levels) {
    SplitWeight w;
    w.rows = std::get<0>(shape);
    w.columns = std::get<1>(shape);
    w.dtype = dtype == "bf16" ? DType::bf16 : DType::fp16;
    w.residual_bits = residual_bits;
    w.table_per_group = table_per_group;
    w.group_size = group_size;
    require(group_size == 32 || group_size == 64 || group_size == 128, "group size must be 32, 64 or 128");
    require(residual_bits == (w.table_per_group && w.dtype == DType::bf16 ? 10 : 12),
            "residual bits do not fit the format");
    const size_t blocks = w.row_blocks();
    require(codes.size() == blocks * w.blocks() * kRowsPerBlock * kBlock / 2, "codes plane has the wrong size");
    require(residual.size() == blocks * w.blocks() * w.residual_tile(), "residual plane has the wrong size");
    require(scales.size() == blocks * w.groups() * kRowsPerBlock, "scales have the wrong size");
    require(escape_rows.size() == blocks * kRowsPerBlock + 1, "escape offsets have the wrong size");
    require(escape_columns.size() == escape_values.size(), "escape columns and values differ in number");
    require(edges.size() == 8 && drops.size() == 8 && table.size() == 8 && levels.size() == 16,
            "tables have the wrong size");
    uint32_t previous = 0;
    for (size_t i = 0; i < escape_rows.size(); previous = escape_rows.data()[i++])
        require(escape_rows.data()[i] >= previous && escape_rows.data()[i] <= escape_columns.size(),
                "escape offsets are not ascending");
    for (size_t i = 0; i < escape_columns.size(); ++i)
        require(escape_columns.data()[i] < w.columns, "an escape lies outside its row");
    w.codes = codes.data();
    w.residual = residual.data();
    w.scales = scales.data();
    w.escape_rows = escape_rows.data();
    w.escape_columns = escape_columns.data();
    w.escape_values = escape_values.data();
    std::copy_n(edges.data(), 8, w.edges);
    std::copy_n(drops.data(), 8, w.drops);
    std::copy_n(table.data(), 8, w.table);
    std::copy_n(levels.data(), 16, w.levels);
    return w;
}

// y = x W^T by the kernels of one instruction set, on the calling thread: what the kernel tests compare. `product` is
// "exact", "draft" or "draft of few".
nb::ndarray<nb::numpy, float> multiply(const std::string& isa, const SplitWeight& w, Array<const float, nb::ndim<2>> x,
                                       const std::string& product) {
    const Kernels& k = kernels(isa);
    const int tokens = static_cast<int>(x.shape(0)), padded = w.padded_columns();
    require(static_cast<int>(x.shape(1)) == w.columns, "x and the matrix differ in columns");
    auto input = make_aligned<float>(static_cast<size_t>(tokens) * padded);
    for (int t = 0; t < tokens; ++t)
        std::copy_n(x.data() + static_cast<size_t>(t) * w.columns, w.columns,
                    input.get() + static_cast<size_t>(t) * padded);
    auto y = make_aligned<float>(static_cast<size_t>(w.row_blocks()) * tokens * kRowsPerBlock);
    if (product == "draft of few") {
        const auto draft_few = k.draft_few(w);
        require(draft_few != nullptr && tokens <= kFewTokens, "there is no such product");
        auto rows = make_aligned<float>(static_cast<size_t>(kFewTokens) * padded);
        k.prepare_few(w)(input.get(), padded, tokens, padded, rows.get());
        draft_few(w, {rows.get(), static_cast<size_t>(padded), tokens}, 0, w.row_blocks(), y.get(), nullptr);
    } else if (product == "exact") {
        auto scratch = make_aligned<float>(exact_scratch(tokens));
        auto rows = make_aligned<float>(static_cast<size_t>(kFewTokens) * padded);
        const bool is_few = tokens <= kFewTokens;
        if (is_few) k.prepare_few(w)(input.get(), padded, tokens, padded, rows.get());
        for (int t = 0; !is_few && k.prepare_row(w) && t < tokens; ++t) {
            float* row = input.get() + static_cast<size_t>(t) * padded;
            k.prepare_row(w)(row, padded, row);
        }
        const auto deltas = escape_deltas(w);
        SplitWeight complete = w;
        complete.escape_deltas = deltas.get();
        const Activations x{is_few ? rows.get() : input.get(), static_cast<size_t>(padded), tokens};
        k.exact_rows(w)(complete, x, 0, w.row_blocks(), y.get(), scratch.get());
    } else {
        auto values = make_aligned<int8_t>(kDraftCopies * padded);
        auto scales = make_aligned<float>(padded / 32);
        auto offsets = make_aligned<int32_t>(kDraftCopies * padded / 4);
        auto rows = make_aligned<float>(static_cast<size_t>(w.row_blocks()) * kRowsPerBlock);
        for (int t = 0; t < tokens; ++t) {
            const DraftRow row{values.get(), scales.get(), offsets.get()};
            k.quantise(w)(input.get() + static_cast<size_t>(t) * padded, padded, row);
            k.draft_rows(w)(w, row, 0, w.row_blocks(), rows.get());
            for (int r = 0; r < w.row_blocks() * kRowsPerBlock; ++r)
                y[(static_cast<size_t>(r / kRowsPerBlock) * tokens + t) * kRowsPerBlock + r % kRowsPerBlock] = rows[r];
        }
    }
    auto* out = new float[static_cast<size_t>(tokens) * w.rows];
    nb::capsule owner(out, [](void* p) noexcept { delete[] static_cast<float*>(p); });
    for (int t = 0; t < tokens; ++t)
        for (int r = 0; r < w.rows; ++r)
            out[static_cast<size_t>(t) * w.rows + r] =
                y[(static_cast<size_t>(r / kRowsPerBlock) * tokens + t) * kRowsPerBlock + r % kRowsPerBlock];
    return {out, {static_cast<size_t>(tokens), static_cast<size_t>(w.rows)}, owner};
}

// The exact float32 values of the matrix, as the embedding look-up decodes them.
nb::ndarray<nb::numpy, float> decode_rows(const std::string& isa, const SplitWeight& w) {
    const auto decode = kernels(isa).decode_row(w);
    auto row = make_aligned<float>(w.padded_columns());
    auto* out = new float[static_cast<size_t>(w.rows) * w.columns];
    nb::capsule owner(out, [](void* p) noexcept { delete[] static_cast<float*>(p); });
    for (int r = 0; r < w.rows; ++r) {
        decode(w, r, row.get());
        std::copy_n(row.get(), w.columns, out + static_cast<size_t>(r) * w.columns);
    }
    return {out, {static_cast<size_t>(w.rows), static_cast<size_t>(w.columns)}, owner};
}

using NormArgument = std::tuple<nb::object, float>;  // (float32 [width] or None, eps)

Norm make_norm(const NormArgument& argument) {
    if (std::get<0>(argument).is_none()) return {};
    return {nb::cast<Vector<float>>(std::get<0>(argument)).data(), std::get<1>(argument)};
}

std::unique_ptr<Step> make_step(const std::string& isa, int threads, int max_tokens, Array<uint16_t, nb::ndim<5>> keys,
                                Array<uint16_t, nb::ndim<5>> values, std::vector<float> inverse_frequencies,
                                float rotary_scale, int vocab_size) {
    for (size_t i = 0; i < 5; ++i) require(keys.shape(i) == values.shape(i), "keys and values differ in shape");
    require(keys.shape(3) == kAttentionChunk, "a page of the KV cache has another size than a chunk of attention");
    require(threads >= 1 && max_tokens >= 1, "threads and max_tokens must be positive");
    const Cache cache{keys.data(),
                      values.data(),
                      static_cast<int>(keys.shape(0)),
                      static_cast<int>(keys.shape(1)),
                      static_cast<int>(keys.shape(2)),
                      static_cast<int>(keys.shape(4))};
    return std::make_unique<Step>(isa, threads, max_tokens, cache, std::move(inverse_frequencies), rotary_scale,
                                  vocab_size);
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

// spans: [n, 2] start and count; pages: those of all spans one after the other, as many for each as its slots need;
// parents: for each row, or empty where all spans are chains.
std::shared_ptr<Pass> make_pass(const Step& step, Vector<int32_t> tokens, Array<const int32_t, nb::ndim<2>> spans,
                                Vector<int32_t> pages, Vector<int32_t> parents, Vector<int32_t> wanted, bool draft) {
    auto pass = std::make_shared<Pass>();
    pass->tokens.assign(tokens.data(), tokens.data() + tokens.size());
    require(pass->count() >= 1 && pass->count() <= step.max_tokens(), "too many tokens for one pass");
    for (int32_t token : pass->tokens)
        require(token >= 0 && token < step.vocab_size(), "a token id lies outside the vocabulary");
    require(parents.size() == 0 || parents.size() == tokens.size(), "every row needs a parent");
    require(spans.shape(1) == 2, "a span is a start and a count");
    int first = 0;
    size_t page = 0;
    for (size_t i = 0; i < spans.shape(0); ++i, first = pass->spans.back().first + pass->spans.back().count) {
        const int32_t start = spans.data()[2 * i], count = spans.data()[2 * i + 1];
        require(start >= 0 && count >= 1 && count <= pass->count() - first, "the spans do not fit the rows");
        require(start <= std::numeric_limits<int32_t>::max() - count, "a span begins too late");
        Span span{first, count, start, count - 1, true, {}, {}, {}};
        const size_t needed = (static_cast<size_t>(span.end()) + kAttentionChunk - 1) / kAttentionChunk;
        require(page + needed <= pages.size(), "a span has too few pages");
        span.pages.assign(pages.data() + page, pages.data() + page + needed);
        for (int32_t p : span.pages) require(p >= 0 && p < step.cache().pages, "there is no such page");
        page += needed;
        if (parents.size()) add_tree(span, parents.data() + first);
        for (int r = 0; r < count; ++r) {
            pass->span_of.push_back(static_cast<int32_t>(i));
            pass->positions.push_back(start + (span.is_chain ? r : span.depths[r]));
        }
        pass->spans.push_back(std::move(span));
    }
    require(first == pass->count() && page == pages.size(), "the spans do not fit the rows");
    pass->wanted.assign(wanted.data(), wanted.data() + wanted.size());
    for (size_t i = 0; i < wanted.size(); ++i)
        require(pass->wanted[i] >= (i ? pass->wanted[i - 1] + 1 : 0) && pass->wanted[i] < pass->count(),
                "wanted rows must be ascending rows of the pass");
    pass->level = draft ? Level::draft : Level::exact;
    pass->last = step.operators();
    return pass;
}

void run(Step& step, std::shared_ptr<Pass> pass) {
    nb::gil_scoped_release release;
    step.run(std::move(pass));
}

nb::object logits(nb::handle self, size_t rows) {
    auto& step = nb::cast<Step&>(self);
    nb::ndarray<nb::numpy, const float> view(step.logits(), {rows, static_cast<size_t>(step.vocab_size())}, self);
    return nb::cast(view);
}

using DrawTuple = std::tuple<double, int64_t, double, double, uint64_t, uint64_t>;

nb::object buffer_view(nb::handle self, const Step& step, const Buffer& found) {
    nb::ndarray<nb::numpy, float, nb::ndim<2>> view(
        found.data.get(), {static_cast<size_t>(step.max_tokens()), static_cast<size_t>(found.width)}, self,
        {found.stride, 1});
    return nb::cast(view);
}

// A buffer as it lies in memory: float32 [max_tokens, width].
nb::object buffer(nb::handle self, int index) {
    auto& step = nb::cast<Step&>(self);
    return buffer_view(self, step, step.buffer(index));
}

nb::object tap(nb::handle self, int index) {
    auto& step = nb::cast<Step&>(self);
    return buffer_view(self, step, step.tap(index));
}

}  // namespace

void bind_step(nb::module_& m) {
    m.def("available_isas", &available_isas);
    nb::class_<SplitWeight>(m, "Matrix").def_static("make", &make_weight);
    m.def("multiply", &multiply);
    m.def("decode_rows", &decode_rows);
    nb::class_<Step>(m, "Step")
        .def_static("make", &make_step)
        .def("add_buffer", &Step::add_buffer)
        .def("add_matrix", &Step::add_matrix)
        .def("embed", [](Step& s, int matrix, int out) { add_embed(s, matrix, out); })
        .def("linear",
             [](Step& s, int x, NormArgument norm, const std::vector<std::tuple<int, int, nb::object>>& parts, int out,
                bool accumulate) {
                 std::vector<LinearPart> list;
                 for (const auto& [matrix, column, bias] : parts)
                     list.push_back({matrix, column, bias.is_none() ? nullptr : nb::cast<Vector<float>>(bias).data()});
                 add_linear(s, x, make_norm(norm), list, out, accumulate);
             })
        .def("gated_linear", [](Step& s, int x, NormArgument norm, int gate, int up,
                                int out) { add_gated_linear(s, x, make_norm(norm), gate, up, out); })
        .def("attention",
             [](Step& s, int qkv, int out, int layer, int heads, int kv_heads, int head_dim, float scale, int window,
                NormArgument q_norm, NormArgument k_norm) {
                 add_attention(s, {qkv, out, layer, heads, kv_heads, head_dim, scale, window, make_norm(q_norm),
                                   make_norm(k_norm)});
             })
        .def("head", [](Step& s, int x, NormArgument norm, int matrix) { add_head(s, x, make_norm(norm), matrix); })
        .def("bind", &Step::bind)
        .def("sample", [](Step& s) { add_sample(s); })
        .def("tap", [](Step& s, int x) { return add_tap(s, x); })
        .def("run",
             [](Step& s, Vector<int32_t> tokens, Array<const int32_t, nb::ndim<2>> spans, Vector<int32_t> pages,
                Vector<int32_t> parents, Vector<int32_t> wanted, bool draft, const std::vector<DrawTuple>& draws,
                bool confidences, const std::vector<int>& taps, size_t first, size_t last) {
                 auto pass = make_pass(s, tokens, spans, pages, parents, wanted, draft);
                 require(draws.empty() || draws.size() == wanted.size(), "every wanted row needs a draw, or none");
                 for (const auto& [temperature, top_k, top_p, min_p, seed, position] : draws)
                     pass->draws.push_back({temperature, top_k, top_p, min_p, seed, position});
                 pass->confidences = confidences;
                 for (int tap : taps) {
                     require(tap >= 0 && tap < s.taps(), "there is no such tap");
                     pass->taps.resize(std::max<size_t>(pass->taps.size(), tap + 1));
                     pass->taps[tap] = 1;
                 }
                 require(first <= last && last <= s.operators(), "there are no such operators");
                 pass->first = first;
                 pass->last = last;
                 run(s, std::move(pass));
             })
        .def("drawn",
             [](const Step& s) {
                 std::vector<std::pair<int32_t, float>> all;
                 for (const auto& d : s.drawn()) all.emplace_back(d.token, d.confidence);
                 return all;
             })
        .def("logits", &logits)
        .def("buffer", &buffer)
        .def("tapped", &tap)
        .def_prop_ro("operators", &Step::operators)
        .def_prop_ro("isa", [](const Step& s) { return std::string(s.isa()); })
        .def_prop_ro("threads", &Step::threads);
}
