// How do keys and values lie in the pages of the pool, and how are scores and weighted sums taken from there?
//
// Plain: [slot][kv head][dim], any type and block size. Tiled (bf16, AMX): a unit of 16 slots is laid out so that AMX
// loads it as it lies; the unit takes the same bytes as in the plain layout, so a page may be copied as a whole.
//   keys   [unit][kv head][32 dims][16 pairs of dims][16 slots][2 dims]
//   values [unit][kv head][16 dims][8 pairs of slots][16 dims][2 slots]
#pragma once

#include "common.h"

namespace penstock {

constexpr int ROWS = 16;      // query rows worked on at once: the heads of a group, for some tokens
constexpr int SEGMENT = 256;  // keys whose softmax is taken at once; fixed, so that a row's sums depend on its length only
constexpr int MAX_DIM = 256;
constexpr int UNIT = 16;

struct Shape {
    int kv_heads, key_dim, value_dim, block_size;
};

struct Scratch {  // one thread's
    alignas(64) float scores[ROWS][SEGMENT];
    alignas(64) bf16 weights[ROWS][SEGMENT];
    alignas(64) float query[ROWS][MAX_DIM];
    alignas(64) bf16 query16[ROWS * MAX_DIM];
    alignas(64) float output[ROWS][MAX_DIM];
    alignas(64) bf16 tail[UNIT * MAX_DIM];
    float row[MAX_DIM];
};

template <class T> class PlainPages {
  public:
    using Element = T;

    PlainPages(const Shape& shape, void* keys, void* values)
        : shape_(shape), keys_(static_cast<T*>(keys)), values_(static_cast<T*>(values)) {}

    void write(std::int64_t slot, int head, const float* key, const float* value) const {
        T* k = keys_ + (slot * shape_.kv_heads + head) * shape_.key_dim;
        T* v = values_ + (slot * shape_.kv_heads + head) * shape_.value_dim;
        for (int d = 0; d < shape_.key_dim; d++) k[d] = from_float<T>(key[d]);
        for (int d = 0; d < shape_.value_dim; d++) v[d] = from_float<T>(value[d]);
    }

    void begin(Scratch& s, const T* const* rows, int num_rows) const {
        for (int r = 0; r < num_rows; r++)
            for (int d = 0; d < shape_.key_dim; d++) s.query[r][d] = to_float(rows[r][d]);
    }

    // scores[r][j] = query r . key first + j, for j < count.
    void score(Scratch& s, int num_rows, const std::int64_t* table, int head, int first, int count) const {
        const int dim = shape_.key_dim;
        for (int j = 0; j < count; j++) {
            const T* k = keys_ + (slot(table, first + j) * shape_.kv_heads + head) * dim;
            for (int d = 0; d < dim; d++) s.row[d] = to_float(k[d]);
            for (int r = 0; r < num_rows; r++) {
                float sum = 0;
#pragma omp simd reduction(+ : sum)
                for (int d = 0; d < dim; d++) sum += s.query[r][d] * s.row[d];
                s.scores[r][j] = sum;
            }
        }
    }

    // output[r] = sum over j < count of scores[r][j] * value first + j.
    void weigh(Scratch& s, int num_rows, const std::int64_t* table, int head, int first, int count, int) const {
        const int dim = shape_.value_dim;
        for (int r = 0; r < num_rows; r++) std::memset(s.output[r], 0, sizeof(float) * dim);
        for (int j = 0; j < count; j++) {
            const T* v = values_ + (slot(table, first + j) * shape_.kv_heads + head) * dim;
            for (int d = 0; d < dim; d++) s.row[d] = to_float(v[d]);
            for (int r = 0; r < num_rows; r++) {
                const float weight = s.scores[r][j];
                if (weight == 0) continue;  // what it doesn't see may be anything
#pragma omp simd
                for (int d = 0; d < dim; d++) s.output[r][d] += weight * s.row[d];
            }
        }
    }

  private:
    std::int64_t slot(const std::int64_t* table, int key) const {
        return table[key / shape_.block_size] * shape_.block_size + key % shape_.block_size;
    }

    Shape shape_;
    T *keys_, *values_;
};

#ifdef HAS_AMX
class TiledPages {
  public:
    using Element = bf16;

    TiledPages(const Shape& shape, void* keys, void* values)
        : shape_(shape), dim_(shape.key_dim), keys_(static_cast<bf16*>(keys)), values_(static_cast<bf16*>(values)) {}

    void write(std::int64_t slot, int head, const float* key, const float* value) const {
        bf16 *k = keys_ + unit(slot, head) + slot % UNIT * 2, *v = values_ + unit(slot, head);
        v += slot % UNIT / 2 * 32 + slot % 2;
        for (int d = 0; d < dim_; d++) k[d / 2 * 32 + d % 2] = from_float<bf16>(key[d]);
        for (int d = 0; d < dim_; d++) v[d / 16 * 256 + d % 16 * 2] = from_float<bf16>(value[d]);
    }

    void begin(Scratch& s, const bf16* const* rows, int num_rows) const {
        // Tile 0: scores; 1: queries; 2: keys; 3: weights; 4 and 5: values; 6 and 7: sums.
        alignas(64) std::uint8_t config[64] = {1};
        const int lines[8] = {num_rows, num_rows, 16, num_rows, 8, 8, num_rows, num_rows};
        for (int tile = 0; tile < 8; tile++) {
            config[16 + tile * 2] = tile == 3 ? 32 : 64;
            config[48 + tile] = std::uint8_t(lines[tile]);
        }
        _tile_loadconfig(config);
        for (int r = 0; r < num_rows; r++) std::memcpy(s.query16 + r * dim_, rows[r], sizeof(bf16) * dim_);
    }

    void score(Scratch& s, int, const std::int64_t* table, int head, int first, int count) const {
        for (int j = 0; j < count; j += UNIT) {
            const bf16* k = keys_ + unit(slot(table, first + j), head);
            // Pages lie anywhere, so the processor can't guess the next.
            if (j + UNIT < count) fetch(keys_ + unit(slot(table, first + j + UNIT), head));
            fetch(values_ + unit(slot(table, first + j), head));
            _tile_zero(0);
            for (int d = 0; d < dim_; d += 32) {
                _tile_loadd(1, s.query16 + d, dim_ * 2);
                _tile_loadd(2, k + d * UNIT, 64);
                _tile_dpbf16ps(0, 1, 2);
            }
            _tile_stored(0, &s.scores[0][j], SEGMENT * 4);
        }
    }

    // `written` = slots of the sequence that hold something; what lies behind them may be anything, even NaN.
    void weigh(Scratch& s, int num_rows, const std::int64_t* table, int head, int first, int count, int written) const {
        const int units = (count + UNIT - 1) / UNIT;
        const bf16* values[SEGMENT / UNIT];
        for (int u = 0; u < units; u++) values[u] = values_ + unit(slot(table, first + u * UNIT), head);
        if (first + units * UNIT > written) values[units - 1] = trimmed(s, values[units - 1], written % UNIT);
        for (int r = 0; r < num_rows; r++)
            for (int j = 0; j < units * UNIT; j += UNIT)
                _mm256_storeu_si256((__m256i*)&s.weights[r][j], (__m256i)_mm512_cvtneps_pbh(_mm512_load_ps(&s.scores[r][j])));
        for (int d = 0; d < dim_; d += 32) {
            _tile_zero(6);
            _tile_zero(7);
            for (int u = 0; u < units; u++) {
                _tile_loadd(3, &s.weights[0][u * UNIT], SEGMENT * 2);
                _tile_loadd(4, values[u] + d * UNIT, 64);
                _tile_loadd(5, values[u] + (d + 16) * UNIT, 64);
                _tile_dpbf16ps(6, 3, 4);
                _tile_dpbf16ps(7, 3, 5);
            }
            _tile_stored(6, &s.output[0][d], MAX_DIM * 4);
            _tile_stored(7, &s.output[0][d + 16], MAX_DIM * 4);
        }
    }

  private:
    std::int64_t slot(const std::int64_t* table, int key) const {
        return table[key / shape_.block_size] * shape_.block_size + key % shape_.block_size;
    }

    std::size_t unit(std::int64_t slot, int head) const {
        return (std::size_t(slot / UNIT) * shape_.kv_heads + head) * UNIT * dim_;
    }

    void fetch(const bf16* unit) const {
        for (int element = 0; element < dim_ * UNIT; element += 32) _mm_prefetch(unit + element, _MM_HINT_T0);
    }

    const bf16* trimmed(Scratch& s, const bf16* values, int written) const {
        std::memcpy(s.tail, values, sizeof(bf16) * UNIT * dim_);
        for (int d = 0; d < dim_; d++)
            for (int j = written; j < UNIT; j++) s.tail[d / 16 * 256 + j / 2 * 32 + d % 16 * 2 + j % 2] = 0;
        return s.tail;
    }

    Shape shape_;
    int dim_;
    bf16 *keys_, *values_;
};
#endif

}  // namespace penstock
