// How do the queries of a step attend to keys and values in pages?
//
// A task is up to 16 query rows of one sequence and KV head. It goes through the keys in segments that begin at fixed
// places; each gives a partial softmax, and they are merged in order. So the threads may share one task's segments, or
// have a task each: a row's bits are the same, and depend on its own keys only.
// Source of the merging: M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax", 2018.
#pragma once

#include "pages.h"

namespace penstock {

struct Sequences {  // of a step
    int count, table_width;
    const std::int64_t* tables;  // [sequences][table_width] blocks
    const std::int32_t* query_lens;
    const std::int32_t* kv_lens;
};

struct Task {
    int sequence, token, tokens, head, heads, kv_head;  // rows: `heads` query heads of each of `tokens` tokens
    int position;                                       // of the first token
    int segment, segments;                              // which to do
    int partial;                                        // where the result goes; -1: it is the whole
};

struct Options {
    float scaling;
    float softcap;       // 0 = none
    int window;          // 0 = none
    const float* sinks;  // [heads] or null
};

struct Partial {
    float top[ROWS], sum[ROWS];
    float output[ROWS][MAX_DIM];

    void clear() {
        for (int r = 0; r < ROWS; r++) {
            top[r] = -std::numeric_limits<float>::infinity();
            sum[r] = 0;
        }
    }

    // Take another's row in; a row that saw no key changes nothing, not a bit.
    void merge(int r, float other_top, float other_sum, const float* other, int dim) {
        if (other_sum == 0) return;
        const float high = top[r] > other_top ? top[r] : other_top;
        const float mine = sum[r] == 0 ? 0 : fast_exp(top[r] - high), its = fast_exp(other_top - high);
        if (sum[r] == 0) std::memset(output[r], 0, sizeof(float) * dim);
#pragma omp simd
        for (int d = 0; d < dim; d++) output[r][d] = output[r][d] * mine + other[d] * its;
        sum[r] = sum[r] * mine + other_sum * its;
        top[r] = high;
    }
};

// The tasks of a step: the same for all layers. `wholes` are those that were cut into segments for want of tasks.
class Plan {
  public:
    std::vector<Task> tasks, wholes;
    std::vector<Partial> partials;

    void build(const Sequences& step, int heads, int kv_heads, int threads) {
        wholes.clear();
        tasks.clear();
        const int group = heads / kv_heads, at_once = group < ROWS ? group : ROWS, tokens = ROWS / at_once;
        for (int s = 0, start = 0; s < step.count; start += step.query_lens[s++])
            for (int t = 0; t < step.query_lens[s]; t += tokens)
                for (int kv_head = 0; kv_head < kv_heads; kv_head++)
                    for (int h = 0; h < group; h += at_once) {
                        const int left = step.query_lens[s] - t, count = left < tokens ? left : tokens;
                        const int position = step.kv_lens[s] - left;
                        const int segments = (position + count + SEGMENT - 1) / SEGMENT;
                        const int num_heads = group - h < at_once ? group - h : at_once;
                        wholes.push_back({s, start + t, count, kv_head * group + h, num_heads, kv_head, position, 0, segments, -1});
                    }
        if (int(wholes.size()) >= 4 * threads) {
            tasks.swap(wholes);
            return;
        }
        int num_partials = 0;
        for (const Task& whole : wholes)
            for (int segment = 0; segment < whole.segments; segment++) {
                tasks.push_back(whole);
                tasks.back().segment = segment;
                tasks.back().segments = 1;
                tasks.back().partial = num_partials++;
            }
        if (int(partials.size()) < num_partials) partials.resize(num_partials);
    }
};

template <class T> struct Rows {
    const T* query;  // [tokens][query_stride], heads next to each other
    T* output;       // [tokens][output_stride]
    int query_stride, output_stride;
};

// Softmax without its division: scores become weights. `first` and `limit`: the keys that the row sees, from the segment.
inline void soften(float* scores, int padded, int first, int limit, const Options& options, float& top, float& sum) {
    const float infinity = std::numeric_limits<float>::infinity();
    if (options.softcap > 0) {
        for (int j = 0; j < padded; j++) scores[j] = options.softcap * std::tanh(scores[j] * options.scaling / options.softcap);
    } else {
#pragma omp simd
        for (int j = 0; j < padded; j++) scores[j] *= options.scaling;
    }
    for (int j = 0; j < first; j++) scores[j] = -infinity;
    for (int j = limit; j < padded; j++) scores[j] = -infinity;
    float highest = -infinity;
#pragma omp simd reduction(max : highest)
    for (int j = 0; j < padded; j++) highest = scores[j] > highest ? scores[j] : highest;
    float total = 0;
#pragma omp simd reduction(+ : total)
    for (int j = 0; j < padded; j++) {
        scores[j] = fast_exp(scores[j] - highest);
        total += scores[j];
    }
    top = highest;
    sum = total;
}

template <class T>
void finish(const Task& task, Partial& state, const Options& options, const Rows<T>& rows, int dim) {
    for (int r = 0; r < task.tokens * task.heads; r++) {
        const int token = task.token + r / task.heads, head = task.head + r % task.heads;
        float sum = state.sum[r], scale = 1;
        if (options.sinks) {
            const float high = state.top[r] > options.sinks[head] ? state.top[r] : options.sinks[head];
            scale = fast_exp(state.top[r] - high);
            sum = sum * scale + fast_exp(options.sinks[head] - high);
        }
        T* out = rows.output + std::size_t(token) * rows.output_stride + head * dim;
        for (int d = 0; d < dim; d++) out[d] = from_float<T>(state.output[r][d] * scale / sum);
    }
}

template <class Pages>
void work(const Task& task, const Sequences& step, const Pages& pages, const Shape& shape, const Options& options,
          const Rows<typename Pages::Element>& rows, Partial& state, Scratch& s) {
    const int num_rows = task.tokens * task.heads, written = step.kv_lens[task.sequence];
    const std::int64_t* table = step.tables + std::size_t(task.sequence) * step.table_width;
    const typename Pages::Element* query[ROWS];
    for (int r = 0; r < num_rows; r++)
        query[r] = rows.query + std::size_t(task.token + r / task.heads) * rows.query_stride +
                   (task.head + r % task.heads) * shape.key_dim;
    pages.begin(s, query, num_rows);
    state.clear();
    const int end = task.position + task.tokens;  // the last token sees the keys before it
    for (int segment = task.segment; segment < task.segment + task.segments; segment++) {
        const int begin = segment * SEGMENT, count = (end - begin < SEGMENT ? end - begin : SEGMENT);
        if (options.window && begin + count <= task.position + 1 - options.window) continue;
        const int padded = (count + UNIT - 1) / UNIT * UNIT;
        pages.score(s, num_rows, table, task.kv_head, begin, count);
        float top[ROWS], sum[ROWS];
        for (int r = 0; r < num_rows; r++) {
            const int limit = task.position + r / task.heads + 1 - begin;  // keys of the segment before it, itself included
            const int first = options.window && limit > options.window ? limit - options.window : 0;
            if (limit <= 0 || first >= count) {
                std::memset(s.scores[r], 0, sizeof(float) * padded);
                sum[r] = 0;
                continue;
            }
            soften(s.scores[r], padded, first, limit < padded ? limit : padded, options, top[r], sum[r]);
        }
        pages.weigh(s, num_rows, table, task.kv_head, begin, count, written);
        for (int r = 0; r < num_rows; r++)
            if (sum[r] > 0) state.merge(r, top[r], sum[r], s.output[r], shape.value_dim);
    }
}

// Called by all threads of a parallel region; they have all finished when it returns.
template <class Pages>
void attend(Plan& plan, const Sequences& step, const Pages& pages, const Shape& shape, const Options& options,
            const Rows<typename Pages::Element>& rows) {
    static thread_local Scratch scratch;
    static thread_local Partial own;
#pragma omp for schedule(dynamic, 1)
    for (std::size_t i = 0; i < plan.tasks.size(); i++) {
        const Task& task = plan.tasks[i];
        Partial& state = task.partial < 0 ? own : plan.partials[task.partial];
        work(task, step, pages, shape, options, rows, state, scratch);
        if (task.partial < 0) finish(task, state, options, rows, shape.value_dim);
    }
    if (plan.wholes.empty()) return;
#pragma omp for schedule(dynamic, 1)
    for (std::size_t i = 0; i < plan.wholes.size(); i++) {
        int partial = 0;
        for (std::size_t j = 0; j < i; j++) partial += plan.wholes[j].segments;
        const Task& whole = plan.wholes[i];
        own.clear();
        for (int k = partial; k < partial + whole.segments; k++)
            for (int r = 0; r < whole.tokens * whole.heads; r++)
                own.merge(r, plan.partials[k].top[r], plan.partials[k].sum[r], plan.partials[k].output[r], shape.value_dim);
        finish(whole, own, options, rows, shape.value_dim);
    }
}

}  // namespace penstock
