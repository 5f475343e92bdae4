// What do all kernels share? Number types, what the processor can do, scratch memory.
#pragma once

#include <omp.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#define HAS_AMX 1
#endif
#if defined(__AVX512BF16__) && defined(__AVX512F__)
#define HAS_AVX512_BF16 1
#endif
#if defined(HAS_AMX) || defined(HAS_AVX512_BF16)
#include <immintrin.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif
#ifdef HAS_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace penstock {

enum Isa { PLAIN = 0, AVX512_BF16 = 1, AMX = 2 };

// The best that this processor and this build can do. Linux hands out AMX's registers on request only.
inline Isa best_isa() {
#ifdef HAS_AMX
    constexpr int request_permission = 0x1023, tile_data = 18;
    static const bool granted = syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
    if (granted) return AMX;
#endif
#ifdef HAS_AVX512_BF16
    return AVX512_BF16;
#else
    return PLAIN;
#endif
}

using bf16 = std::uint16_t;

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
    std::uint32_t bits = std::uint32_t(x) << 16;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
}

template <class T> T from_float(float x);
template <> inline float from_float<float>(float x) { return x; }
template <> inline bf16 from_float<bf16>(float x) {  // to nearest, ties to even
    std::uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bf16(x != x ? 0x7FC0 : (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

// e^x to 2 units in the last place, 0 below -87. Branchless, so that the compiler makes vectors of it.
// Source: S. Moshier, Cephes, expf.
inline float fast_exp(float x) {
    const float bounded = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const float shifted = bounded * 1.44269504f + magic;
    const float n = shifted - magic;
    const float r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    std::int32_t bits, power;
    std::memcpy(&bits, &p, 4);
    std::memcpy(&power, &shifted, 4);
    bits += (power - 0x4B400000) << 23;
    std::memcpy(&p, &bits, 4);
    return x < -87.0f ? 0.0f : p;
}

// Elements from one row to the next of a matrix with `columns` columns: whole tiles, and an odd number of cache lines,
// so that the rows of a tile don't fall into the same cache sets.
template <class T> inline int row_stride(int columns) {
    const int per_line = 64 / int(sizeof(T));
    const int lines = (((columns + 31) / 32 * 32) + per_line - 1) / per_line;
    return (lines | 1) * per_line;
}

// Ask for large pages, for memory that nobody has written to yet: fewer addresses to translate.
inline void prefer_large_pages(void* memory, std::size_t bytes) {
#ifdef __linux__
    constexpr std::uintptr_t page = 4096;
    const std::uintptr_t begin = (std::uintptr_t(memory) + page - 1) / page * page;
    const std::uintptr_t end = (std::uintptr_t(memory) + bytes) / page * page;
    if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // refused: no harm
#else
    (void)memory, (void)bytes;
#endif
}

// Memory for one step, handed out piece by piece. It grows to what the largest step needed, and stays.
class Arena {
  public:
    ~Arena() { std::free(memory_); }

    void reserve(std::size_t bytes) {
        used_ = 0;
        if (bytes <= size_) return;
        std::free(memory_);
        size_ = (bytes + 4095) / 4096 * 4096;
        memory_ = static_cast<char*>(std::aligned_alloc(4096, size_));
        prefer_large_pages(memory_, size_);
        std::memset(memory_, 0, size_);
    }

    template <class T> T* take(std::size_t count) {
        T* taken = reinterpret_cast<T*>(memory_ + used_);
        used_ += padded<T>(count);
        return taken;
    }

    template <class T> static std::size_t padded(std::size_t count) { return (count * sizeof(T) + 63) / 64 * 64; }

  private:
    char* memory_ = nullptr;
    std::size_t size_ = 0, used_ = 0;
};

}  // namespace penstock
