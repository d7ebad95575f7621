// Python face of the step: matrices over NumPy memory (which the Python side keeps alive), operators, and run().
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <optional>
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

// y = x W^T by the kernels of one instruction set, on the calling thread: what the kernel tests compare.
nb::ndarray<nb::numpy, float> multiply(const std::string& isa, const SplitWeight& w, Array<const float, nb::ndim<2>> x,
                                       bool draft) {
    const Kernels& k = kernels(isa);
    const int tokens = static_cast<int>(x.shape(0)), padded = w.padded_columns();
    require(static_cast<int>(x.shape(1)) == w.columns, "x and the matrix differ in columns");
    auto input = make_aligned<float>(static_cast<size_t>(tokens) * padded);
    for (int t = 0; t < tokens; ++t)
        std::copy_n(x.data() + static_cast<size_t>(t) * w.columns, w.columns,
                    input.get() + static_cast<size_t>(t) * padded);
    auto y = make_aligned<float>(static_cast<size_t>(w.row_blocks()) * tokens * kRowsPerBlock);
    if (!draft) {
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

const float* make_bias(Step& step, int matrix, const nb::object& bias) {  // float32 [rows] or None
    if (bias.is_none()) return nullptr;
    const auto vector = nb::cast<Vector<float>>(bias);
    require(static_cast<int>(vector.size()) == step.matrix(matrix).weight.rows, "a bias and its matrix differ in rows");
    return vector.data();
}

std::unique_ptr<Step> make_step(const std::string& isa, int threads, int max_tokens, Array<uint16_t, nb::ndim<4>> keys,
                                Array<uint16_t, nb::ndim<4>> values, std::vector<float> inverse_frequencies,
                                float rotary_scale, int vocab_size) {
    for (size_t i = 0; i < 4; ++i) require(keys.shape(i) == values.shape(i), "keys and values differ in shape");
    require(threads >= 1 && max_tokens >= 1, "threads and max_tokens must be positive");
    const Cache cache{keys.data(), values.data(), static_cast<int>(keys.shape(1)), static_cast<int>(keys.shape(2)),
                      static_cast<int>(keys.shape(3))};
    return std::make_unique<Step>(isa, threads, max_tokens, cache, std::move(inverse_frequencies), rotary_scale,
                                  vocab_size);
}

nb::object run(nb::handle self, Vector<int32_t> tokens, int start, bool draft, int logits, size_t first,
               std::optional<size_t> last) {
    auto& step = nb::cast<Step&>(self);
    const size_t end = last.value_or(step.operators());
    require(first <= end && end <= step.operators(), "there are no such operators");
    const Pass pass{
        tokens.data(), static_cast<int>(tokens.size()), start, draft, static_cast<Logits>(logits), first, end};
    require(pass.count >= 1 && pass.count <= step.max_tokens(), "too many tokens for one pass");
    require(start >= 0 && start + pass.count <= step.capacity(), "the pass ends beyond the KV cache");
    for (int t = 0; t < pass.count; ++t)
        require(pass.tokens[t] >= 0 && pass.tokens[t] < step.vocab_size(), "a token id lies outside the vocabulary");
    int rows;
    {
        nb::gil_scoped_release release;
        rows = step.run(pass);
    }
    nb::ndarray<nb::numpy, const float> view(step.logits(),
                                             {static_cast<size_t>(rows), static_cast<size_t>(step.vocab_size())}, self);
    return nb::cast(view);
}

// A buffer as it lies in memory: float32 [max_tokens, width].
nb::object buffer(nb::handle self, int index) {
    auto& step = nb::cast<Step&>(self);
    Buffer& found = step.buffer(index);
    nb::ndarray<nb::numpy, float, nb::ndim<2>> view(
        found.data.get(), {static_cast<size_t>(step.max_tokens()), static_cast<size_t>(found.width)}, self,
        {found.stride, 1});
    return nb::cast(view);
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
                     list.push_back({matrix, column, make_bias(s, matrix, bias)});
                 add_linear(s, x, make_norm(norm), list, out, accumulate);
             })
        .def(
            "gated_linear",
            [](Step& s, int x, NormArgument norm, int gate, int up, int out, nb::object gate_bias, nb::object up_bias) {
                add_gated_linear(s, x, make_norm(norm), {gate, 0, make_bias(s, gate, gate_bias)},
                                 {up, 0, make_bias(s, up, up_bias)}, out);
            },
            nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg().none())
        .def("attention",
             [](Step& s, int qkv, int out, int layer, int heads, int kv_heads, int head_dim, float scale, int window,
                NormArgument q_norm, NormArgument k_norm) {
                 add_attention(s, {qkv, out, layer, heads, kv_heads, head_dim, scale, window, make_norm(q_norm),
                                   make_norm(k_norm)});
             })
        .def("head", [](Step& s, int x, NormArgument norm, int matrix) { add_head(s, x, make_norm(norm), matrix); })
        .def("bind", &Step::bind)
        .def("run", &run, nb::arg("tokens"), nb::arg("start"), nb::arg("draft"), nb::arg("logits"),
             nb::arg("first") = 0, nb::arg("last") = nb::none())
        .def("buffer", &buffer)
        .def_prop_ro("operators", &Step::operators)
        .def_prop_ro("isa", [](const Step& s) { return std::string(s.isa()); })
        .def_prop_ro("threads", &Step::threads);
}
