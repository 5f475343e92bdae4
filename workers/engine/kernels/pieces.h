// What can a model that runs through transformers borrow of the decoder? A linear layer, and the attention of one layer.
//
// Both keep the decoder's promise: a row's bits depend on that row, and its own sequence, only.
#pragma once

#include "attention.h"
#include "gemm.h"

namespace penstock {

// What a layer brings along. T = tokens of the step.
struct LayerCall {
    const void *query, *key, *value;  // [T][heads][key dim], [T][kv heads][key dim], [T][kv heads][value dim]
    void *keys, *values;              // the pool
    const float* sinks;               // [heads] or null
    void* output;                     // [T][heads][value dim]
    const std::int64_t* slots;        // [T]
    float scaling, softcap;           // softcap 0 = none
    int window;                       // 0 = none
    int tokens, heads, kv_heads, key_dim, value_dim, block_size, threads;
};

// out [rows][outputs] = x [rows][columns] times a matrix, whose inputs are `columns` and zeros up to a multiple of 32.
template <class T> void linear(Isa isa, const T* x, int rows, int columns, const Matrix& matrix, T* out, int threads) {
    static Arena arena;
    const int stride = row_stride<T>(matrix.inputs), room = (rows + BLOCK - 1) / BLOCK * BLOCK + BLOCK;
    arena.reserve(Arena::padded<T>(std::size_t(room) * stride));
    T* padded = arena.take<T>(std::size_t(room) * stride);
#pragma omp parallel num_threads(threads)
    {
#pragma omp for schedule(static)
        for (int r = 0; r < rows; r++) {
            T* row = padded + std::size_t(r) * stride;
            std::memcpy(row, x + std::size_t(r) * columns, sizeof(T) * columns);
            std::memset(row + columns, 0, sizeof(T) * (matrix.inputs - columns));
        }
        gemm(isa, padded, stride, rows, matrix, [&](int row, int panel, const float* c) {
            const int left = matrix.outputs - panel * PANEL, count = left < PANEL ? left : PANEL;
            T* to = out + std::size_t(row) * matrix.outputs + panel * PANEL;
            const float* bias = matrix.bias ? matrix.bias + panel * PANEL : nullptr;
            for (int j = 0; j < count; j++) to[j] = from_float<T>(bias ? c[j] + bias[j] : c[j]);
        });
    }
}

// Keys and values go to their slots, then every token attends.
template <class Pages> void attend_layer(const LayerCall& l, const Sequences& sequences) {
    using T = typename Pages::Element;
    static Plan plan;
    plan.build(sequences, l.heads, l.kv_heads, l.threads);
    const Shape shape{l.kv_heads, l.key_dim, l.value_dim, l.block_size};
    const Pages pages(shape, l.keys, l.values);
    const T *key = static_cast<const T*>(l.key), *value = static_cast<const T*>(l.value);
#pragma omp parallel num_threads(l.threads)
    {
        float k[MAX_DIM], v[MAX_DIM];
#pragma omp for schedule(static)
        for (int t = 0; t < l.tokens; t++)
            for (int h = 0; h < l.kv_heads; h++) {
                const std::size_t row = std::size_t(t) * l.kv_heads + h;
                for (int d = 0; d < l.key_dim; d++) k[d] = to_float(key[row * l.key_dim + d]);
                for (int d = 0; d < l.value_dim; d++) v[d] = to_float(value[row * l.value_dim + d]);
                pages.write(l.slots[t], h, k, v);
            }
        attend(plan, sequences, pages, shape, {l.scaling, l.softcap, l.window, l.sinks},
               Rows<T>{static_cast<const T*>(l.query), static_cast<T*>(l.output), l.heads * l.key_dim,
                       l.heads * l.value_dim});
    }
}

}  // namespace penstock
