// What the slot of each escape lacks: its true weight less T[0] of its group, which the planes hold in its place.
#pragma once
#include "core/aligned.h"
#include "core/split.h"

namespace speq {

// float32 [escapes], in the order of the side list.
Aligned<float> escape_deltas(const SplitWeight& w);

}  // namespace speq
