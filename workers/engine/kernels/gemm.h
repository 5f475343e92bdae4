// How are activations multiplied by a weight matrix? Out of panels of 32 outputs that each thread streams through once.
//
// A row's result depends on that row alone: each element is summed over k in one fixed order, by the same instructions,
// however many rows there are. So one row and a thousand use the same kernel, and a sequence's bits are the same alone
// and in a batch.
#pragma once

#include "common.h"

namespace penstock {

constexpr int PANEL = 32;   // outputs
constexpr int KSTEP = 32;   // inputs; a matrix's inputs are a multiple of it
constexpr int BLOCK = 32;   // rows computed at once
constexpr int SUPER = 256;  // rows that stay in the cache while all panels pass by

// A weight matrix [outputs, inputs], packed.
//   float: [panel][input][32 outputs]
//   bf16:  [panel][32 inputs][2 x 16 outputs][16 pairs of inputs][16 outputs][2 inputs], which is AMX's order of B
struct Matrix {
    const void* packed;
    const float* bias;  // or null
    int outputs, inputs;
};

inline int panels_of(int outputs) { return (outputs + PANEL - 1) / PANEL; }

inline void pack(const float* from, float* to, int outputs, int inputs) {
#pragma omp parallel for
    for (int panel = 0; panel < panels_of(outputs); panel++)
        for (int k = 0; k < inputs; k++)
            for (int j = 0; j < PANEL; j++) {
                const int n = panel * PANEL + j;
                to[(std::size_t(panel) * inputs + k) * PANEL + j] = n < outputs ? from[std::size_t(n) * inputs + k] : 0;
            }
}

inline void pack(const bf16* from, bf16* to, int outputs, int inputs) {
#pragma omp parallel for
    for (int panel = 0; panel < panels_of(outputs); panel++) {
        bf16* out = to + std::size_t(panel) * inputs * PANEL;
        for (int k = 0; k < inputs; k += KSTEP)
            for (int half = 0; half < 2; half++)
                for (int pair = 0; pair < 16; pair++)
                    for (int j = 0; j < 16; j++, out += 2) {
                        const int n = panel * PANEL + half * 16 + j;
                        const bf16* source = from + std::size_t(n) * inputs + k + pair * 2;
                        out[0] = n < outputs ? source[0] : 0;
                        out[1] = n < outputs ? source[1] : 0;
                    }
    }
}

// c [rows][32] of up to 4 rows, for any processor.
inline void plain_rows(const float* a, int stride, int rows, const float* w, int inputs, float* c) {
    float sum[4][PANEL] = {};
    for (int k = 0; k < inputs; k++)
        for (int r = 0; r < 4; r++) {
            const float x = a[(r < rows ? r : 0) * stride + k];
#pragma omp simd
            for (int j = 0; j < PANEL; j++) sum[r][j] += x * w[k * PANEL + j];
        }
    std::memcpy(c, sum, sizeof(float) * rows * PANEL);
}

inline void plain_rows(const bf16* a, int stride, int rows, const bf16* w, int inputs, float* c) {
    float sum[4][2][16] = {};
    for (int k = 0; k < inputs; k += KSTEP)
        for (int half = 0; half < 2; half++)
            for (int pair = 0; pair < 16; pair++, w += 32)
                for (int r = 0; r < 4; r++) {
                    const bf16* x = a + (r < rows ? r : 0) * stride + k + pair * 2;
                    const float x0 = to_float(x[0]), x1 = to_float(x[1]);
#pragma omp simd
                    for (int j = 0; j < 16; j++)
                        sum[r][half][j] += x0 * to_float(w[j * 2]) + x1 * to_float(w[j * 2 + 1]);
                }
    std::memcpy(c, sum, sizeof(float) * rows * PANEL);
}

#ifdef HAS_AVX512_BF16
template <int ROWS> void avx512_rows(const bf16* a, int stride, const bf16* w, int inputs, float* c) {
    __m512 sum[ROWS][2];
    for (int r = 0; r < ROWS; r++) sum[r][0] = sum[r][1] = _mm512_setzero_ps();
    for (int k = 0; k < inputs; k += KSTEP, w += 1024)
        for (int pair = 0; pair < 16; pair++) {
            const __m512bh w0 = (__m512bh)_mm512_loadu_si512(w + pair * 32);
            const __m512bh w1 = (__m512bh)_mm512_loadu_si512(w + 512 + pair * 32);
            for (int r = 0; r < ROWS; r++) {
                std::int32_t x;
                std::memcpy(&x, a + r * stride + k + pair * 2, 4);
                sum[r][0] = _mm512_dpbf16_ps(sum[r][0], (__m512bh)_mm512_set1_epi32(x), w0);
                sum[r][1] = _mm512_dpbf16_ps(sum[r][1], (__m512bh)_mm512_set1_epi32(x), w1);
            }
        }
    for (int r = 0; r < ROWS; r++) {
        _mm512_storeu_ps(c + r * PANEL, sum[r][0]);
        _mm512_storeu_ps(c + r * PANEL + 16, sum[r][1]);
    }
}
#endif

#ifdef HAS_AMX
// Eight tiles of 16 rows of 64 bytes.
inline void amx_configure_gemm() {
    alignas(64) std::uint8_t config[64] = {1};
    for (int tile = 0; tile < 8; tile++) {
        config[16 + tile * 2] = 64;
        config[48 + tile] = 16;
    }
    _tile_loadconfig(config);
}

// c [16 * TILES][32]. Reads whole tiles of rows: `a` has room for them. FIRST: the panel comes from memory, so it is
// fetched ahead; for the rows after, it is in the cache.
template <int TILES, bool FIRST> void amx_rows(const bf16* a, int stride, const bf16* w, int inputs, float* c) {
    _tile_zero(0);
    _tile_zero(1);
    if (TILES == 2) {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int k = 0; k < inputs; k += KSTEP, w += 1024) {
        if (FIRST)
            for (int line = 0; line < 32; line++) _mm_prefetch(w + 8192 + line * 32, _MM_HINT_T1);
        _tile_loadd(6, w, 64);
        _tile_loadd(7, w + 512, 64);
        _tile_loadd(4, a + k, stride * 2);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (TILES == 2) {
            _tile_loadd(5, a + 16 * stride + k, stride * 2);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, c, PANEL * 4);
    _tile_stored(1, c + 16, PANEL * 4);
    if (TILES == 2) {
        _tile_stored(2, c + 16 * PANEL, PANEL * 4);
        _tile_stored(3, c + 16 * PANEL + 16, PANEL * 4);
    }
}
#endif

// c [rows][32] of up to 32 rows; `is_first` = the panel's first rows.
inline void block(Isa, const float* a, int stride, int rows, const float* w, int inputs, float* c, bool) {
    for (int r = 0; r < rows; r += 4)
        plain_rows(a + std::size_t(r) * stride, stride, rows - r < 4 ? rows - r : 4, w, inputs, c + r * PANEL);
}

inline void block(Isa isa, const bf16* a, int stride, int rows, const bf16* w, int inputs, float* c, bool is_first) {
#ifdef HAS_AMX
    if (isa == AMX) {
        if (rows <= 16) return amx_rows<1, true>(a, stride, w, inputs, c);
        return is_first ? amx_rows<2, true>(a, stride, w, inputs, c) : amx_rows<2, false>(a, stride, w, inputs, c);
    }
#endif
    int r = 0;
#ifdef HAS_AVX512_BF16
    if (isa == AVX512_BF16) {
        for (; r + 8 <= rows; r += 8) avx512_rows<8>(a + std::size_t(r) * stride, stride, w, inputs, c + r * PANEL);
        for (; r < rows; r++) avx512_rows<1>(a + std::size_t(r) * stride, stride, w, inputs, c + r * PANEL);
        return;
    }
#endif
    (void)isa, (void)is_first;
    for (; r < rows; r += 4)
        plain_rows(a + std::size_t(r) * stride, stride, rows - r < 4 ? rows - r : 4, w, inputs, c + r * PANEL);
}

// a [rows (room for a multiple of 32)][stride] times a matrix; `store(row, panel, c)` takes 32 outputs of a row.
// Called by all threads of a parallel region; they have all finished when it returns.
template <class T, class Store>
void gemm(Isa isa, const T* a, int stride, int rows, const Matrix& matrix, const Store& store) {
#ifdef HAS_AMX
    if (isa == AMX && sizeof(T) == 2) amx_configure_gemm();
#endif
    const int panels = panels_of(matrix.outputs), supers = (rows + SUPER - 1) / SUPER;
    alignas(64) float c[BLOCK * PANEL];
#pragma omp for schedule(dynamic, 2)
    for (int item = 0; item < panels * supers; item++) {
        const int panel = item % panels, first = item / panels * SUPER;
        const int last = first + SUPER < rows ? first + SUPER : rows;
        const T* w = static_cast<const T*>(matrix.packed) + std::size_t(panel) * matrix.inputs * PANEL;
        for (int row = first; row < last; row += BLOCK) {
            const int count = last - row < BLOCK ? last - row : BLOCK;
            block(isa, a + std::size_t(row) * stride, stride, count, w, matrix.inputs, c, row == first);
            for (int r = 0; r < count; r++) store(row + r, panel, c + r * PANEL);
        }
    }
}

}  // namespace penstock
