// The native codec behind speq.formats: encode, decode, draft values and the exponent histogram of e3m0.
//
// speq.formats.codec allocates the planes; speq.formats.reference defines the results.
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
#include "bind/weight.h"
#include "codec/decode.h"
#include "codec/encode.h"
#include "core/parallel.h"

namespace nb = nanobind;

namespace speq::codec {
namespace {

// The measures of a matrix whose patterns or values are `array`.
template <typename T>
SplitShape shape_of(const SplitFormat& format, const Table<T>& array) {
    require_aligned(array);
    return checked_shape(format, static_cast<int64_t>(array.shape(0)), static_cast<int64_t>(array.shape(1)));
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
    require(influence.size() / influence.shape(1) >= static_cast<size_t>(columns),
            "feedback does not cover the columns");
}

using EscapeArrays = std::pair<nb::ndarray<nb::numpy, uint16_t>, nb::ndarray<nb::numpy, uint16_t>>;

// Fills codes, residual, scales and the number of escapes per row; returns columns and values of the escapes.
// `influence` and `coupling`: float32 [blocks, size, size], empty for no feedback.
EscapeArrays encode(const SplitFormat& format, const Array<const uint16_t>& table,
                    const Table<const uint16_t>& patterns, const Array<const float>& importance,
                    const Array<const float>& candidates, const Array<const float>& influence,
                    const Array<const float>& coupling, int passes, const Array<uint8_t>& codes,
                    const Array<uint8_t>& residual, const Array<uint16_t>& scales, const Array<uint32_t>& counts,
                    int threads) {
    const SplitShape shape = shape_of(with_table(format, table), patterns);
    require_planes(shape, codes.size(), residual.size(), scales.size());
    require(importance.size() == static_cast<size_t>(shape.groups()) * static_cast<size_t>(shape.group_size),
            "importance does not cover the columns of the groups");
    require(counts.size() + 1 == shape.escape_offsets(), "counts of escapes have the wrong size");
    require_aligned(importance, candidates, influence, coupling, scales, counts);
    require_feedback(influence, coupling, shape.columns);
    const EncoderInput matrix{shape, patterns.data()};
    const EncodedPlanes planes{codes.data(), residual.data(), scales.data()};
    std::vector<Escapes> found(static_cast<size_t>(matrix.pieces()));
    Escapes all;
    {
        const Released released;
        const auto strips = [&](const Array<const float>& factors) {
            return Influence(factors.data(), static_cast<int64_t>(factors.shape(0)),
                             static_cast<int64_t>(factors.shape(1)), threads);
        };
        std::optional<Feedback> feedback;
        if (influence.size()) feedback.emplace(strips(influence), strips(coupling), passes);
        parallel_for(matrix.pieces(), threads, [&] {
            auto encoder = std::make_unique<Encoder>(kernels(""), matrix, importance.data(),
                                                     std::span(candidates.data(), candidates.size()),
                                                     feedback ? &*feedback : nullptr, planes);
            return [&, encoder = std::move(encoder)](int64_t i) {
                encoder->piece(i, found[static_cast<size_t>(i)], counts.data());
            };
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
void for_each_row(const SplitShape& shape, T* out, int threads, const DecodeRow& decode_row) {
    parallel_for(shape.row_blocks(), threads, [&] {
        return [&](int64_t i) {
            const int row_block = static_cast<int>(i);
            for (int row = 0; row < kRowsPerBlock && kRowsPerBlock * row_block + row < shape.rows; ++row)
                decode_row(row_block, row, out + (kRowsPerBlock * i + row) * shape.columns);
        };
    });
}

void decode(const SplitFormat& format, const Array<const uint8_t>& codes, const Array<const uint8_t>& residual,
            const Array<const uint16_t>& scales, const Array<const uint32_t>& escape_rows,
            const Array<const uint16_t>& escape_columns, const Array<const uint16_t>& escape_values,
            const Array<const uint16_t>& table, const Table<uint16_t>& out, int threads) {
    const SplitShape shape = shape_of(format, out);
    const SplitWeight split =
        checked_weight(format, shape.rows, shape.columns,
                       {codes, residual, scales, escape_rows, escape_columns, escape_values, table});
    const TileLayout layout(split);
    const Released released;
    for_each_row(split, out.data(), threads, [&](int row_block, int row, uint16_t* patterns) {
        decode_row(layout, split, row_block, row, patterns);
    });
}

void draft_values(const SplitFormat& format, const Array<const uint8_t>& codes, const Array<const uint16_t>& scales,
                  const Table<float>& out, int threads) {
    SplitWeight split{shape_of(format, out)};
    require_planes(split, codes.size(), split.residual_bytes(), scales.size());
    require_aligned(scales);
    split.codes = codes.data();
    split.scales = scales.data();
    const TileLayout layout(split);
    const Released released;
    for_each_row(split, out.data(), threads,
                 [&](int row_block, int row, float* values) { draft_row(layout, split, row_block, row, values); });
}

// counts[e] of 256: finite, non-zero weights with biased exponent e.
void exponent_histogram(const Array<const uint16_t>& patterns, bool bf16, const Array<int64_t>& counts) {
    require(counts.size() == 256, "an exponent has 256 values");
    require_aligned(patterns, counts);
    const Released released;
    const DType dtype = bf16 ? DType::bf16 : DType::fp16;
    for (size_t i = 0; i < patterns.size(); ++i) {
        const int magnitude = patterns.data()[i] & 0x7fff;
        if (magnitude > 0 && magnitude < infinity(dtype)) ++counts.data()[magnitude >> mantissa_bits(dtype)];
    }
}

}  // namespace
}  // namespace speq::codec

void bind_codec(nb::module_& m) {
    using namespace speq;
    using namespace speq::codec;
    const auto arg = [](const char* name) { return nb::arg(name); };
    // What is written to must be the caller's own array, not one that was converted for the call.
    const auto out = [](const char* name) { return nb::arg(name).noconvert(); };
    const auto kw_only = nb::kw_only();
    m.def("encode", &encode, arg("format"), kw_only, arg("table"), arg("patterns"), arg("importance"),
          arg("candidates"), arg("influence"), arg("coupling"), arg("passes"), out("codes"), out("residual"),
          out("scales"), out("escape_counts"), arg("threads"));
    m.def("decode", &decode, arg("format"), kw_only, arg("codes"), arg("residual"), arg("scales"), arg("escape_rows"),
          arg("escape_columns"), arg("escape_values"), arg("table"), out("out"), arg("threads"));
    m.def("draft_values", &draft_values, arg("format"), kw_only, arg("codes"), arg("scales"), out("out"),
          arg("threads"));
    m.def("exponent_histogram", &exponent_histogram, arg("patterns"), arg("bf16"), out("counts"));
}
