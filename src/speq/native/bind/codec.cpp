// The native codec behind speq.bits: encode, decode, draft values and the exponent histogram of e3m0.
//
// speq.bits.codec allocates the planes; speq.bits.reference defines the results.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "bind/arrays.h"
#include "bind/released.h"
#include "codec/decode.h"
#include "codec/encode.h"
#include "core/parallel.h"

namespace nb = nanobind;

namespace speq::codec {
namespace {

Format make_format(bool bf16, bool nested, int residual_bits, int group_size, const Array<const float>& edges,
                   const Array<const int32_t>& drops, const Array<const int16_t>& levels) {
    require(edges.size() == 8 && drops.size() == 8 && levels.size() == 16, "tables have the wrong size");
    require_aligned(edges, drops, levels);
    const auto within = [](const auto& values, auto least, auto most) {
        return std::all_of(values.data(), values.data() + values.size(),
                           [&](auto value) { return value >= least && value <= most; });
    };
    require(within(edges, 0.0f, 0x1p20f) && within(drops, 0, 0x7fff) && within(levels, -64, 64),
            "edges, drops or levels are out of range");
    checked_shape(1, 1, group_size, residual_bits);
    const Kernels& best = kernels("");
    Format format{bf16,
                  nested,
                  residual_bits,
                  group_size,
                  {},
                  {},
                  {},
                  {},
                  best.nearest_bins,
                  best.nearest_bins_of_rows,
                  best.add_products};
    std::copy_n(edges.data(), 8, format.edges.begin());
    std::copy_n(drops.data(), 8, format.drops.begin());
    std::copy_n(levels.data(), 16, format.levels.begin());
    return format;
}

Format with_table(Format format, const Array<const uint16_t>& table) {
    require(table.size() == 8, "tables have the wrong size");
    require_aligned(table);
    std::copy_n(table.data(), 8, format.table.begin());
    return format;
}

// The measures of a matrix whose patterns or values are `array`.
template <typename T>
SplitShape shape_of(const Format& format, const Table<T>& array) {
    require_aligned(array);
    return checked_shape(int64_t(array.shape(0)), int64_t(array.shape(1)), format.group_size, format.residual_bits);
}

nb::ndarray<nb::numpy, uint16_t> to_numpy(std::vector<uint16_t>&& values) {
    auto* owned = new std::vector<uint16_t>(std::move(values));
    nb::capsule owner(owned, [](void* p) noexcept { delete static_cast<std::vector<uint16_t>*>(p); });
    return nb::ndarray<nb::numpy, uint16_t>(owned->data(), {owned->size()}, owner);
}

void require_feedback(const Array<const float>& influence, const Array<const float>& coupling, int columns) {
    if (influence.size() == 0) return;
    require(influence.ndim() == 3 && coupling.ndim() == 3, "feedback has the wrong shape");
    for (size_t i = 0; i < 3; ++i) require(influence.shape(i) == coupling.shape(i), "feedback has two shapes");
    require(influence.shape(1) == influence.shape(2), "feedback is not made of square blocks");
    require(influence.size() / influence.shape(1) >= size_t(columns), "feedback does not cover the columns");
}

using EscapeArrays = std::pair<nb::ndarray<nb::numpy, uint16_t>, nb::ndarray<nb::numpy, uint16_t>>;

// Fills codes, residual, scales and the number of escapes per row; returns columns and values of the escapes.
// `influence` and `coupling`: float32 [blocks, size, size], empty for no feedback.
EscapeArrays encode(const Format& plain_format, const Array<const uint16_t>& table,
                    const Table<const uint16_t>& patterns, const Array<const float>& importance,
                    const Array<const float>& candidates, const Array<const float>& influence,
                    const Array<const float>& coupling, int passes, const Array<uint8_t>& codes,
                    const Array<uint8_t>& residual, const Array<uint16_t>& scales, const Array<uint32_t>& counts,
                    int threads) {
    const Format format = with_table(plain_format, table);
    const SplitShape shape = shape_of(format, patterns);
    require_planes(shape, codes.size(), residual.size(), scales.size());
    require(importance.size() == size_t(shape.groups()) * size_t(shape.group_size),
            "importance does not cover the columns of the groups");
    require(counts.size() + 1 == shape.escape_offsets(), "counts of escapes have the wrong size");
    require_aligned(importance, candidates, influence, coupling, scales, counts);
    require_feedback(influence, coupling, shape.columns);
    const Matrix matrix{patterns.data(), shape.rows, shape.columns, shape.blocks(), shape.groups()};
    const Planes planes{codes.data(), residual.data(), scales.data()};
    std::vector<Escapes> found(static_cast<size_t>(matrix.pieces()));
    Escapes all;
    {
        const Released released;
        const auto strips = [&](const Array<const float>& factors) {
            return Influence(factors.data(), int64_t(factors.shape(0)), int64_t(factors.shape(1)), threads);
        };
        std::optional<Feedback> feedback;
        if (influence.size()) feedback.emplace(strips(influence), strips(coupling), passes);
        parallel_for(matrix.pieces(), threads, [&] {
            auto encoder = std::make_unique<Encoder>(format, matrix, importance.data(),
                                                     std::span(candidates.data(), candidates.size()),
                                                     feedback ? &*feedback : nullptr, planes);
            return [&, encoder = std::move(encoder)](int64_t i) { encoder->piece(i, found[size_t(i)], counts.data()); };
        });
        size_t total = 0;
        for (const Escapes& part : found) total += part.columns.size();
        all.columns.reserve(total);
        all.values.reserve(total);
        for (Escapes& part : found) {
            all.columns.insert(all.columns.end(), part.columns.begin(), part.columns.end());
            all.values.insert(all.values.end(), part.values.begin(), part.values.end());
            part = {};
        }
    }
    return {to_numpy(std::move(all.columns)), to_numpy(std::move(all.values))};
}

template <typename T, typename DecodeRow>
void for_each_row(const SplitView& split, T* out, int threads, const DecodeRow& decode_row) {
    parallel_for((split.rows + kRows - 1) / kRows, threads, [&] {
        return [&](int64_t block_row) {
            for (int row = 0; row < kRows && kRows * block_row + row < split.rows; ++row)
                decode_row(block_row, row, out + (kRows * block_row + row) * split.columns);
        };
    });
}

void decode(const Format& plain_format, const Array<const uint16_t>& table, const Array<const uint8_t>& codes,
            const Array<const uint8_t>& residual, const Array<const uint16_t>& scales,
            const Array<const uint32_t>& escape_rows, const Array<const uint16_t>& escape_columns,
            const Array<const uint16_t>& escape_values, const Table<uint16_t>& out, int threads) {
    const Format format = with_table(plain_format, table);
    const TileLayout layout(format);
    const SplitShape shape = shape_of(format, out);
    require_planes(shape, codes.size(), residual.size(), scales.size());
    require_aligned(scales, escape_rows, escape_columns, escape_values);
    require_escapes(shape, escape_rows.data(), escape_rows.size(), escape_columns.data(), escape_columns.size(),
                    escape_values.size());
    const SplitView split{codes.data(),          residual.data(),      scales.data(), escape_rows.data(),
                          escape_columns.data(), escape_values.data(), shape.rows,    shape.columns,
                          shape.blocks(),        shape.groups()};
    const Released released;
    for_each_row(split, out.data(), threads, [&](int64_t block_row, int row, uint16_t* patterns) {
        decode_row(format, layout, split, block_row, row, patterns);
    });
}

void draft_values(const Format& format, const Array<const uint8_t>& codes, const Array<const uint16_t>& scales,
                  const Table<float>& out, int threads) {
    const TileLayout layout(format);
    const SplitShape shape = shape_of(format, out);
    require_planes(shape, codes.size(), shape.residual_bytes(), scales.size());
    require_aligned(scales);
    const SplitView split{codes.data(), nullptr,    scales.data(), nullptr,        nullptr,
                          nullptr,      shape.rows, shape.columns, shape.blocks(), shape.groups()};
    const Released released;
    for_each_row(split, out.data(), threads, [&](int64_t block_row, int row, float* values) {
        draft_row(format, layout, split, block_row, row, values);
    });
}

// counts[e] of 256: finite, non-zero weights with biased exponent e.
void exponent_histogram(const Array<const uint16_t>& patterns, bool bf16, const Array<int64_t>& counts) {
    require(counts.size() == 256, "an exponent has 256 values");
    require_aligned(patterns, counts);
    const Released released;
    const int mantissa_bits = bf16 ? 7 : 10, infinity = bf16 ? 0x7f80 : 0x7c00;
    for (size_t i = 0; i < patterns.size(); ++i) {
        const int magnitude = patterns.data()[i] & 0x7fff;
        if (magnitude > 0 && magnitude < infinity) ++counts.data()[magnitude >> mantissa_bits];
    }
}

}  // namespace
}  // namespace speq::codec

void bind_codec(nb::module_& m) {
    using namespace speq;
    using namespace speq::codec;
    nb::class_<Format>(m, "SplitFormat")
        .def("__init__", [](Format* self, bool bf16, bool nested, int residual_bits, int group_size,
                            const Array<const float>& edges, const Array<const int32_t>& drops,
                            const Array<const int16_t>& levels) {
            new (self) Format(make_format(bf16, nested, residual_bits, group_size, edges, drops, levels));
        });
    // What is written to must be the caller's own array, not one that was converted for the call.
    const auto in = nb::arg();
    const auto out = nb::arg().noconvert();
    m.def("encode", &encode, in, in, in, in, in, in, in, in, out, out, out, out, in);
    m.def("decode", &decode, in, in, in, in, in, in, in, in, out, in);
    m.def("draft_values", &draft_values, in, in, in, out, in);
    m.def("exponent_histogram", &exponent_histogram, in, in, out);
}
