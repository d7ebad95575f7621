// What the codes of a group are worth in a draft.
#pragma once
#include "core/kernels.h"

namespace speq::codec {

// `step` is the value of one level.
inline Drafts drafts_of(const SplitFormat& format, float step) {
    Drafts drafts;
    for (int c = 0; c < 8; ++c) {
        drafts.above[c] = static_cast<float>(format.levels[c]) * step;
        drafts.below[c] = static_cast<float>(format.levels[c + 8]) * step;
    }
    return drafts;
}

}  // namespace speq::codec
