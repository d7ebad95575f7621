// One decoding step of a model: operators bound to memory once, replayed by run() without allocation or Python.
#pragma once
#include <array>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/aligned.h"
#include "core/checks.h"
#include "core/kernels.h"
#include "core/thread_team.h"
#include "draft/draft_input.h"
#include "step/pass.h"

namespace speq {

struct Buffer {  // float32 [max_tokens, stride]; columns width..stride-1 are always zero
    int width = 0;
    int stride = 0;
    Aligned<float> data;
    float* row(int token) { return data.get() + static_cast<size_t>(token) * stride; }
};

// Keys and values of all sequences, in pages of kAttentionChunk slots: FP16 [pages, layers, kv_heads, kAttentionChunk,
// head_dim], owned by the caller.
struct Cache {
    uint16_t* keys = nullptr;
    uint16_t* values = nullptr;
    int pages = 0, layers = 0, kv_heads = 0, head_dim = 0;

    size_t offset(int page, int layer, int kv_head) const {
        return ((static_cast<size_t>(page) * layers + layer) * kv_heads + kv_head) * kAttentionChunk * head_dim;
    }
    size_t offset(const Span& span, int layer, int kv_head, int slot) const {
        return offset(span.pages[slot / kAttentionChunk], layer, kv_head) +
               static_cast<size_t>(slot % kAttentionChunk) * head_dim;
    }
};

struct BoundWeight {  // a split weight with the kernels for its format
    SplitWeight weight;
    Kernels::ExactRows exact_rows;
    Kernels::PrepareRow prepare_row;
    Kernels::PrepareFew prepare_few;
    Kernels::DraftRows draft_rows;
    Kernels::PrepareFew prepare_draft;  // or null
    Kernels::ExactRows draft_few;       // or null
    Kernels::Quantise quantise;
    Kernels::DecodeRow decode_row;
    Aligned<float> escape_deltas;
};

struct Norm {
    const float* weight = nullptr;  // null: no normalisation
    float eps = 0;
    size_t width = 0;
};

struct Scratch {           // of one thread
    Aligned<float> input;  // normalised activations of few tokens
    Aligned<float> rows;   // of few tokens, as the exact product wants them
    DraftInput draft;
    Aligned<float> product, product2, strip;
    Aligned<float> attention;
    Aligned<float> queries;                    // of kAttentionTokens tokens and a kv head, rotated
    Aligned<uint16_t> tree_keys, tree_values;  // of a tree that lies in two pages
};

// The logits of a pass, a row for each that it wanted. Later passes leave them alone as long as somebody holds them.
struct Output {
    int rows = 0;
    std::shared_ptr<float[]> logits;
};

class Step;

// The claim to tasks of one operator in one run.
class Tasks {
  public:
    Tasks(Stage& stage, uint32_t run, int total, int worker)
        : stage_(stage), run_(run), total_(total), worker_(worker) {}

    // Calls work(task) for tasks that nobody else has taken, until there are none.
    template <class Work>
    void each(Work&& work) {
        for (int task = next(); task >= 0; task = next()) {
            work(task);
            stage_.finish_task(run_);
        }
    }

  private:
    int next() { return stage_.claim(run_, total_, worker_); }

    Stage& stage_;
    uint32_t run_;
    int total_, worker_;
};

class Operator {
  public:
    virtual ~Operator() = default;
    // How many tasks the operator has in this pass; none skips it.
    virtual int tasks(Step& step, const Pass& pass) const = 0;
    // Called by every worker, which works on the tasks it gets. Inputs are complete and stable only inside a task.
    virtual void run(Step& step, const Pass& pass, Tasks& tasks, int worker) = 0;
};

// Limits that keep the sizes of a step within their types, far beyond any model: columns of a buffer, tokens of a pass.
constexpr int kMostWidth = 1 << 22, kMostTokens = 1 << 16;

class Step {
  public:
    Step(const std::string& isa, int threads, int max_tokens, Cache cache, std::vector<float> inverse_frequencies,
         float rotary_scale, int vocab_size);

    int add_buffer(int width);
    int add_matrix(const SplitWeight& weight);
    // A copy of `width` columns of a buffer, made where its operator stands and when a pass asks for it.
    int add_tap(int width);
    // Makes room for attention of so many heads, `group` of them to a kv head.
    void reserve_attention(int heads, int group, int head_dim);
    void add_operator(std::unique_ptr<Operator> op) {
        require_open();
        stages_.push_back(std::make_unique<Stage>(threads_));
        operators_.push_back(std::move(op));
    }

    // Sizes the scratch memory; call after the last add_*.
    void bind();

    // Runs the pass. Its logits, draws and taps stay until the next one. Callers in several threads wait for each
    // other, so each pass is whole; which of them comes first, and who reads its results, is theirs to arrange. Throws
    // UserError in a process that was forked from the one that made the step.
    void run(std::shared_ptr<const Pass> pass);

    // Logits of the rows that the last pass wanted, and what was drawn from them. A caller waits while a pass runs.
    Output output();
    std::vector<Drawn> draws();
    // float32 [rows of the pass, stride] of a tap that the last pass asked for.
    Buffer& tap(int index) { return taps_[index]; }
    bool is_bound() const { return bound_; }
    int vocab_size() const { return vocab_size_; }
    int taps() const { return static_cast<int>(taps_.size()); }
    size_t operators() const { return operators_.size(); }
    size_t buffers() const { return buffers_.size(); }
    size_t matrices() const { return matrices_.size(); }
    int max_tokens() const { return max_tokens_; }
    const char* isa() const { return kernels_.name; }
    int threads() const { return threads_; }

    // For the operators.
    const Kernels& kernels() const { return kernels_; }
    const Cache& cache() const { return cache_; }
    Buffer& buffer(int index) { return buffers_[index]; }
    const BoundWeight& matrix(int index) const { return matrices_[index]; }
    Scratch& scratch(int worker) { return scratch_[worker]; }
    // [chunk][token][head][attention_state(head_dim)] for passes of up to kAttentionTokens tokens
    float* attention_states() { return attention_states_.get(); }
    float* shared_input() { return shared_input_.get(); }
    Drawn& drawn(int row) { return drawn_[row]; }
    float* logits_row(int row) { return output_.logits.get() + static_cast<size_t>(row) * vocab_size_; }
    const float* cosines(int token) const { return cosines_.get() + static_cast<size_t>(token) * half(); }
    const float* sines(int token) const { return sines_.get() + static_cast<size_t>(token) * half(); }
    int half() const { return static_cast<int>(inverse_frequencies_.size()); }

  private:
    void require_open() const { require(!bound_, "nothing can be added after bind()"); }
    std::shared_ptr<float[]> take_logits(int rows);
    void make_room(const Pass& pass);
    void prepare_rotation(const Pass& pass);
    void work(int worker, uint32_t run);

    const Kernels& kernels_;
    const int threads_;
    const int max_tokens_;
    const Cache cache_;
    const std::vector<float> inverse_frequencies_;
    const float rotary_scale_;
    const int vocab_size_;
    std::vector<Buffer> buffers_;
    std::vector<BoundWeight> matrices_;
    std::vector<std::unique_ptr<Operator>> operators_;
    std::vector<std::unique_ptr<Stage>> stages_;  // of the operators
    std::vector<Scratch> scratch_;
    std::vector<Buffer> taps_;
    std::vector<Drawn> drawn_;
    Aligned<float> shared_input_, cosines_, sines_, attention_states_;
    bool bound_ = false;
    Output output_;                       // of the last run
    std::array<Output, 2> used_outputs_;  // memory of earlier ones: one that the caller may still hold, one to fill
    size_t attention_scratch_ = 0;        // floats, of each thread
    size_t queries_ = 0;                  // floats, of each thread
    size_t tree_ = 0;                     // halves, of each thread
    int attention_token_ = 0;             // floats of one token's states for one chunk
    size_t attention_states_size_ = 0;    // floats; grows with the context

    std::mutex run_mutex_;   // held by the one caller whose pass runs: all fields of the step but those below are its
    std::mutex pass_mutex_;  // guards the two below, which tell workers what the current run is
    std::shared_ptr<const Pass> pass_;
    uint32_t pass_run_ = 0;
    ThreadTeam team_;  // last, so that its threads end before anything they use
};

// Row blocks of a product that a worker takes at a time, at most.
constexpr int kFewTokensChunk = 64;
constexpr int kManyTokensChunk = 16;

}  // namespace speq
