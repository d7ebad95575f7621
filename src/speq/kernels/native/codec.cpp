// The native codec behind speq.bits: encode, decode, draft values and the exponent histogram of e3m0.
//
// speq.bits.codec checks every argument and allocates the planes; speq.bits.reference defines the results.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>

#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "codec_decode.h"
#include "codec_encode.h"
#include "codec_parallel.h"
#include "released.h"

namespace nb = nanobind;

namespace speq::codec {
namespace {

template <typename T>
using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu>;

Format make_format(bool bf16, bool nested, int residual_bits, int group_size, const Array<const float>& edges,
                   const Array<const int32_t>& drops, const Array<const int16_t>& levels) {
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
    std::copy_n(table.data(), 8, format.table.begin());
    return format;
}

nb::ndarray<nb::numpy, uint16_t> to_numpy(std::vector<uint16_t>&& values) {
    auto* owned = new std::vector<uint16_t>(std::move(values));
    nb::capsule owner(owned, [](void* p) noexcept { delete static_cast<std::vector<uint16_t>*>(p); });
    return nb::ndarray<nb::numpy, uint16_t>(owned->data(), {owned->size()}, owner);
}

using EscapeArrays = std::pair<nb::ndarray<nb::numpy, uint16_t>, nb::ndarray<nb::numpy, uint16_t>>;

// Fills codes, residual, scales and the number of escapes per row; returns columns and values of the escapes.
// `influence` and `coupling`: float32 [blocks, size, size], empty for no feedback.
EscapeArrays encode(const Format& plain_format, const Array<const uint16_t>& table,
                    const Array<const uint16_t>& patterns, const Array<const float>& importance,
                    const Array<const float>& candidates, const Array<const float>& influence,
                    const Array<const float>& coupling, int passes, const Array<uint8_t>& codes,
                    const Array<uint8_t>& residual, const Array<uint16_t>& scales, const Array<uint32_t>& counts,
                    int threads) {
    const Format format = with_table(plain_format, table);
    const Matrix matrix{patterns.data(), int64_t(patterns.shape(0)), int64_t(patterns.shape(1)),
                        int64_t(codes.shape(1)), int64_t(scales.shape(1))};
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

// The planes of a split matrix, in the order of speq.bits.tensor.PLANES without the table.
SplitView view(const Array<const uint8_t>& codes, const Array<const uint8_t>& residual,
               const Array<const uint16_t>& scales, const Array<const uint32_t>& escape_rows,
               const Array<const uint16_t>& escape_columns, const Array<const uint16_t>& escape_values, int64_t rows,
               int64_t columns) {
    return {codes.data(),
            residual.data(),
            scales.data(),
            escape_rows.data(),
            escape_columns.data(),
            escape_values.data(),
            rows,
            columns,
            int64_t(codes.shape(1)),
            int64_t(scales.shape(1))};
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
            const Array<const uint16_t>& escape_values, const Array<uint16_t>& out, int threads) {
    const Format format = with_table(plain_format, table);
    const TileLayout layout(format);
    const SplitView split = view(codes, residual, scales, escape_rows, escape_columns, escape_values,
                                 int64_t(out.shape(0)), int64_t(out.shape(1)));
    const Released released;
    for_each_row(split, out.data(), threads, [&](int64_t block_row, int row, uint16_t* patterns) {
        decode_row(format, layout, split, block_row, row, patterns);
    });
}

void draft_values(const Format& format, const Array<const uint8_t>& codes, const Array<const uint16_t>& scales,
                  const Array<float>& out, int threads) {
    const TileLayout layout(format);
    const SplitView split{codes.data(),
                          nullptr,
                          scales.data(),
                          nullptr,
                          nullptr,
                          nullptr,
                          int64_t(out.shape(0)),
                          int64_t(out.shape(1)),
                          int64_t(codes.shape(1)),
                          int64_t(scales.shape(1))};
    const Released released;
    for_each_row(split, out.data(), threads, [&](int64_t block_row, int row, float* values) {
        draft_row(format, layout, split, block_row, row, values);
    });
}

// counts[e] of 256: finite, non-zero weights with biased exponent e.
void exponent_histogram(const Array<const uint16_t>& patterns, bool bf16, const Array<int64_t>& counts) {
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
    using namespace speq::codec;
    nb::class_<Format>(m, "SplitFormat")
        .def("__init__", [](Format* self, bool bf16, bool nested, int residual_bits, int group_size,
                            const Array<const float>& edges, const Array<const int32_t>& drops,
                            const Array<const int16_t>& levels) {
            new (self) Format(make_format(bf16, nested, residual_bits, group_size, edges, drops, levels));
        });
    m.def("encode", &encode);
    m.def("decode", &decode);
    m.def("draft_values", &draft_values);
    m.def("exponent_histogram", &exponent_histogram);
}
