// How does a decoder of the Llama family compute a step, all layers in one call?
//
// One parallel region; between two stages all threads meet. The residual stream, queries and keys before rotation, and
// all sums are float; what a product reads is of the weights' type.
#include "attention.h"
#include "gemm.h"
#include "pieces.h"

namespace penstock {

struct Layer {
    const float *attention_norm, *mlp_norm;  // [hidden]
    const float *query_norm, *key_norm;      // [head_dim] or null
    Matrix qkv, output, gate_up, down;       // gate_up: 16 outputs of gate, 16 of up, and so on
    void *keys, *values;                     // the pool
    int window;                              // 0 = none
};

struct Model {
    int isa, is_bf16, is_tiled;
    int hidden, intermediate, heads, kv_heads, head_dim, num_layers, block_size, threads;
    float epsilon, scaling;
    const void* embedding;  // [vocab][hidden]
    const float* final_norm;
    Matrix head;
    const Layer* layers;
};

struct Step {
    int tokens, samples;
    Sequences sequences;
    const std::int64_t *input_ids, *slots, *sample_rows;
    const float *cosines, *sines;  // [tokens][head_dim / 2]
};

// Weight * x / root mean square of x.
// Source: B. Zhang, R. Sennrich, "Root Mean Square Layer Normalization", 2019.
template <class T> void normalise(const float* x, const float* weight, T* out, int size, float epsilon) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < size; i++) sum += x[i] * x[i];
    const float scale = 1 / std::sqrt(sum / size + epsilon);
    for (int i = 0; i < size; i++) out[i] = from_float<T>(x[i] * scale * weight[i]);
}

inline void rotate(float* x, const float* cosine, const float* sine, int half) {
#pragma omp simd
    for (int d = 0; d < half; d++) {
        const float low = x[d], high = x[d + half];
        x[d] = low * cosine[d] - high * sine[d];
        x[d + half] = high * cosine[d] + low * sine[d];
    }
}

template <class T, class Pages> class Forward {
  public:
    Forward(const Model& model, const Step& step, Arena& arena, Plan& plan)
        : m(model), step(step), plan(plan), isa(Isa(model.isa)),
          shape{model.kv_heads, model.head_dim, model.head_dim, model.block_size} {
        const std::size_t rows = (step.tokens + step.samples + BLOCK - 1) / BLOCK * BLOCK + BLOCK;
        queries_width = m.heads * m.head_dim;
        qkv_width = queries_width + 2 * m.kv_heads * m.head_dim;
        hidden_stride = row_stride<T>(m.hidden);
        inner_stride = row_stride<T>(m.intermediate);
        attended_stride = row_stride<T>(queries_width);
        arena.reserve(rows * (Arena::padded<float>(m.hidden) + Arena::padded<float>(qkv_width) +
                              Arena::padded<T>(hidden_stride) + Arena::padded<T>(inner_stride) +
                              Arena::padded<T>(attended_stride) + Arena::padded<T>(queries_width)) + 4096);
        residual = arena.take<float>(rows * m.hidden);
        qkv = arena.take<float>(rows * qkv_width);
        normed = arena.take<T>(rows * hidden_stride);
        inner = arena.take<T>(rows * inner_stride);
        attended = arena.take<T>(rows * attended_stride);
        queries = arena.take<T>(rows * queries_width);
    }

    // Called by all threads of a parallel region.
    void run(float* logits) {
        const T* embedding = static_cast<const T*>(m.embedding);
#pragma omp for schedule(static)
        for (int t = 0; t < step.tokens; t++)
            for (int i = 0; i < m.hidden; i++)
                residual[std::size_t(t) * m.hidden + i] = to_float(embedding[step.input_ids[t] * m.hidden + i]);
        for (int l = 0; l < m.num_layers; l++) {
            attention(m.layers[l]);
            mlp(m.layers[l]);
        }
#pragma omp for schedule(static)
        for (int r = 0; r < step.samples; r++)
            normalise(residual + step.sample_rows[r] * m.hidden, m.final_norm, normed + std::size_t(r) * hidden_stride,
                      m.hidden, m.epsilon);
        gemm(isa, normed, hidden_stride, step.samples, m.head, [&](int row, int panel, const float* c) {
            const int left = m.head.outputs - panel * PANEL, count = left < PANEL ? left : PANEL;
            std::memcpy(logits + std::size_t(row) * m.head.outputs + panel * PANEL, c, sizeof(float) * count);
        });
    }

  private:
    void attention(const Layer& layer) {
        norm(layer.attention_norm);
        gemm(isa, normed, hidden_stride, step.tokens, layer.qkv, [&](int row, int panel, const float* c) {
            const int left = qkv_width - panel * PANEL, count = left < PANEL ? left : PANEL;
            float* out = qkv + std::size_t(row) * qkv_width + panel * PANEL;
            const float* bias = layer.qkv.bias ? layer.qkv.bias + panel * PANEL : nullptr;
            for (int j = 0; j < count; j++) out[j] = bias ? c[j] + bias[j] : c[j];
        });
        const Pages pages(shape, layer.keys, layer.values);
#pragma omp for schedule(static)
        for (int t = 0; t < step.tokens; t++) place(t, layer, pages);
        attend(plan, step.sequences, pages, shape, {m.scaling, 0, layer.window, nullptr},
               {queries, attended, queries_width, attended_stride});
        gemm(isa, attended, attended_stride, step.tokens, layer.output, adder(layer.output));
    }

    // Rotate a token's queries and keys; keys and values go to their slot.
    void place(int t, const Layer& layer, const Pages& pages) {
        const int half = m.head_dim / 2;
        float* row = qkv + std::size_t(t) * qkv_width;
        const float *cosine = step.cosines + std::size_t(t) * half, *sine = step.sines + std::size_t(t) * half;
        for (int h = 0; h < m.heads + m.kv_heads; h++) {
            float* x = row + h * m.head_dim;
            const float* weight = h < m.heads ? layer.query_norm : layer.key_norm;
            if (weight) normalise(x, weight, x, m.head_dim, m.epsilon);
            rotate(x, cosine, sine, half);
        }
        T* query = queries + std::size_t(t) * queries_width;
        for (int i = 0; i < queries_width; i++) query[i] = from_float<T>(row[i]);
        const float *keys = row + queries_width, *values = keys + m.kv_heads * m.head_dim;
        for (int h = 0; h < m.kv_heads; h++)
            pages.write(step.slots[t], h, keys + h * m.head_dim, values + h * m.head_dim);
    }

    void mlp(const Layer& layer) {
        norm(layer.mlp_norm);
        gemm(isa, normed, hidden_stride, step.tokens, layer.gate_up, [&](int row, int panel, const float* c) {
            T* out = inner + std::size_t(row) * inner_stride + panel * 16;
#pragma omp simd
            for (int j = 0; j < 16; j++) out[j] = from_float<T>(c[j] / (1 + fast_exp(-c[j])) * c[16 + j]);
        });
        gemm(isa, inner, inner_stride, step.tokens, layer.down, adder(layer.down));
    }

    void norm(const float* weight) {
#pragma omp for schedule(static)
        for (int t = 0; t < step.tokens; t++)
            normalise(residual + std::size_t(t) * m.hidden, weight, normed + std::size_t(t) * hidden_stride, m.hidden,
                      m.epsilon);
    }

    auto adder(const Matrix& matrix) {
        return [this, &matrix](int row, int panel, const float* c) {
            float* out = residual + std::size_t(row) * m.hidden + panel * PANEL;
            const float* bias = matrix.bias ? matrix.bias + panel * PANEL : nullptr;
            for (int j = 0; j < PANEL; j++) out[j] += bias ? c[j] + bias[j] : c[j];
        };
    }

    const Model& m;
    const Step& step;
    Plan& plan;
    const Isa isa;
    const Shape shape;
    int queries_width, qkv_width, hidden_stride, inner_stride, attended_stride;
    float *residual, *qkv;
    T *normed, *inner, *attended, *queries;
};

template <class T, class Pages> void run(const Model& model, const Step& step, float* logits) {
    static Arena arena;
    static Plan plan;
    plan.build(step.sequences, model.heads, model.kv_heads, model.threads);
    Forward<T, Pages> forward(model, step, arena, plan);
#pragma omp parallel num_threads(model.threads)
    forward.run(logits);
}

}  // namespace penstock

using namespace penstock;

extern "C" {

int penstock_best_isa() { return best_isa(); }

// Elements that a packed matrix takes.
std::int64_t penstock_packed_size(int outputs, int inputs) { return std::int64_t(panels_of(outputs)) * PANEL * inputs; }

void penstock_prefer_large_pages(void* memory, std::int64_t bytes) { prefer_large_pages(memory, std::size_t(bytes)); }

void penstock_pack(int is_bf16, const void* from, void* to, int outputs, int inputs) {
    if (is_bf16) pack(static_cast<const bf16*>(from), static_cast<bf16*>(to), outputs, inputs);
    else pack(static_cast<const float*>(from), static_cast<float*>(to), outputs, inputs);
}

// One forward pass: keys and values go to the pool, logits [samples][vocab] are of the rows that sample.
void penstock_forward(const Model* model, const Step* step, float* logits) {
#ifdef HAS_AMX
    if (model->is_tiled) return run<bf16, TiledPages>(*model, *step, logits);
#endif
    if (model->is_bf16) run<bf16, PlainPages<bf16>>(*model, *step, logits);
    else run<float, PlainPages<float>>(*model, *step, logits);
}

// out [rows][outputs] = x [rows][columns] times a packed matrix.
void penstock_linear(int isa, int is_bf16, const void* x, int rows, int columns, const Matrix* matrix, void* out,
                     int threads) {
    if (is_bf16) linear(Isa(isa), static_cast<const bf16*>(x), rows, columns, *matrix, static_cast<bf16*>(out), threads);
    else linear(Isa(isa), static_cast<const float*>(x), rows, columns, *matrix, static_cast<float*>(out), threads);
}

// The attention of one layer over its pages.
void penstock_attend(int is_bf16, int is_tiled, const LayerCall* layer, const Sequences* sequences) {
#ifdef HAS_AMX
    if (is_tiled) return attend_layer<TiledPages>(*layer, *sequences);
#endif
    (void)is_tiled;
    if (is_bf16) attend_layer<PlainPages<bf16>>(*layer, *sequences);
    else attend_layer<PlainPages<float>>(*layer, *sequences);
}

// The place of each row's highest score, the first among equals.
void penstock_argmax(const float* scores, std::int64_t* best, int rows, int columns, int threads) {
    constexpr int stretch = 1024;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int r = 0; r < rows; r++) {
        const float* row = scores + std::size_t(r) * columns;
        float highest = -std::numeric_limits<float>::infinity();
        int where = 0;
        for (int begin = 0; begin < columns; begin += stretch) {
            const int end = begin + stretch < columns ? begin + stretch : columns;
            float high = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : high)
            for (int j = begin; j < end; j++) high = row[j] > high ? row[j] : high;
            if (high > highest) {
                highest = high;
                where = begin;
            }
        }
        while (where < columns - 1 && row[where] != highest) where++;
        best[r] = where;
    }
}

// Minus infinity where a row's bit isn't set; `words` [count][width] are for the rows at `places`.
void penstock_forbid(float* logits, const int* places, const std::uint32_t* words, int count, int columns, int width,
                     int threads) {
    constexpr float never = -std::numeric_limits<float>::infinity();
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int r = 0; r < count; r++) {
        float* row = logits + std::size_t(places[r]) * columns;
        for (int w = 0; w < width; w++) {
            const std::uint32_t word = words[std::size_t(r) * width + w];
            if (word == ~std::uint32_t(0)) continue;  // inside a string nearly all tokens are allowed
            const int begin = w * 32, end = begin + 32 < columns ? begin + 32 : columns;
            for (int j = begin; j < end; j++) row[j] = word >> (j - begin) & 1 ? row[j] : never;
        }
    }
}

}  // extern "C"
