// The operators of speq.kernels.ops over the buffers and matrices of a Step.
#pragma once
#include <memory>
#include <vector>

#include "step.h"

namespace speq {

struct LinearPart {  // one of the matrices that share an input; its results start at column `column` of the output
    int matrix;
    int column;
    const float* bias;  // or null
};

std::unique_ptr<Operator> make_embed(int matrix, int out);
std::unique_ptr<Operator> make_linear(int x, Norm norm, std::vector<LinearPart> parts, int out, bool accumulate);
std::unique_ptr<Operator> make_gated_linear(int x, Norm norm, int gate, int up, int out);
std::unique_ptr<Operator> make_rotary(int qkv, int layer, int heads, int kv_heads, int head_dim, Norm q_norm,
                                      Norm k_norm);
std::unique_ptr<Operator> make_attention(int qkv, int out, int layer, int heads, int kv_heads, int head_dim,
                                         float scale, int window);
std::unique_ptr<Operator> make_head(int x, Norm norm, int matrix);

}  // namespace speq
