// What one run of a step computes: rows of tokens, grouped into spans of sequences, at one level of the weights.
#pragma once
#include <cstdint>
#include <vector>

#include "core/kernels.h"
#include "step/sampling.h"

namespace speq {

// What a pass reads of the weights: the draft codes alone, or everything.
enum class Level { draft, exact };

// Neighbouring rows of a pass that belong to one sequence. They follow `start` tokens which its cache holds already,
// as a chain or as a tree: the keys and values of row i go to slot start + i, while its position is start + depth(i).
struct Span {
    int first, count;  // rows of the pass
    int start;
    int deepest;                  // depth of the deepest row; count - 1 for a chain
    bool is_chain;                // every row is the child of the row before it
    std::vector<int32_t> pages;   // of the KV cache, in the order of their slots
    std::vector<int32_t> depths;  // of a tree: of each row, 0 for children of what is in the cache already
    std::vector<int32_t>
        ancestors;  // of a tree: for each row the rows on the path to it, itself last, deepest + 1 wide

    const int32_t* path(int row) const { return ancestors.data() + static_cast<size_t>(row) * (deepest + 1); }
    int end() const { return start + count; }  // slots
};

struct Pass {
    std::vector<int32_t> tokens;
    std::vector<int32_t> positions;
    std::vector<int32_t> span_of;  // the index of each row's span
    std::vector<Span> spans;
    std::vector<int32_t> wanted;  // rows whose logits are computed, ascending
    std::vector<Draw> draws;      // what is drawn from each of these, or empty
    bool confidences = true;      // whether greedy draws tell how sure they are
    std::vector<uint8_t> taps;    // by number, whether a tap copies; missing ones do not
    Level level = Level::exact;
    size_t first = 0, last = 0;  // operators

    int count() const { return static_cast<int>(tokens.size()); }
    bool is_draft() const { return level == Level::draft; }
};

}  // namespace speq
