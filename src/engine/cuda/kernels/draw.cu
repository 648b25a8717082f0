// Draws one token a row of logits [rows, vocab], f32: temperature, then top-k, then the nucleus (arXiv 1904.09751), then one
// of what is kept, in proportion, as the least of exponential clocks (the Gumbel-max trick), whose times are hashes of
// (seed, token id). So neither the order of threads nor the neighbours change what is drawn. Masses are whole numbers, whose
// sums do not depend on their order. Of tokens that weigh the same, the cut keeps all.

#define THREADS 512
#define CANDIDATES 4096
#define UNIT 1099511627776.0f // 2^40: the mass of the likeliest token

__device__ __forceinline__ u64 mass_of(float weight) { return __float2ull_rn(weight * UNIT); }

// -ln(1 - u), u uniform in (0, 1): when the clock of token `id` rings.
__device__ __forceinline__ float clock_of(u64 seed, u32 id) {
    u64 z = seed + (u64)(id + 1) * 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    z ^= z >> 31;
    return -log1pf(-(float)((u32)(z >> 40) | 1) * (1.0f / 16777216.0f));
}

struct Best {
    float score;
    int id;
    __device__ __forceinline__ void see(float s, int i) {
        if (s > score || (s == score && i < id)) {
            score = s;
            id = i;
        }
    }
};

// The best of a block, in every thread.
__device__ Best block_best(Best x) {
    __shared__ float scores[32];
    __shared__ int ids[32];
    for (int d = 16; d > 0; d >>= 1) {
        float s = __shfl_xor_sync(FULL, x.score, d);
        int i = __shfl_xor_sync(FULL, x.id, d);
        x.see(s, i);
    }
    __syncthreads();
    if ((threadIdx.x & 31) == 0) {
        scores[threadIdx.x >> 5] = x.score;
        ids[threadIdx.x >> 5] = x.id;
    }
    __syncthreads();
    for (int w = 0; w < (int)(blockDim.x >> 5); w++) x.see(scores[w], ids[w]);
    return x;
}

// options: { temperature, top_p } and top_k per row. out: the id, or -1 where a logit is not a finite number.
extern "C" __global__ void __launch_bounds__(THREADS) draw(
    const float* logits, int vocab, const int* rows, const float2* options, const int* top_ks, const u64* seeds, int* out) {
    __shared__ u64 sums[32];
    __shared__ float weights[CANDIDATES];
    __shared__ int ids[CANDIDATES];
    __shared__ int count, bad;
    const float* x = logits + (size_t)rows[blockIdx.x] * vocab;
    float temperature = options[blockIdx.x].x, top_p = options[blockIdx.x].y;
    int top_k = top_ks[blockIdx.x], tid = threadIdx.x;
    u64 seed = seeds[blockIdx.x];
    if (tid == 0) count = bad = 0;
    __syncthreads();

    Best best = {-INFINITE, vocab};
    bool odd = false;
#pragma unroll 4
    for (int i = tid; i < vocab; i += THREADS) {
        float value = x[i];
        odd |= !(fabsf(value) < INFINITE);
        best.see(value, i);
    }
    if (odd) bad = 1;
    best = block_best(best);
    if (bad || temperature <= 0) {
        if (tid == 0) out[blockIdx.x] = bad ? -1 : best.id;
        return;
    }
    float peak = best.score, inverse = 1 / temperature;
    auto weigh = [&](int i) { return __expf((x[i] - peak) * inverse); };

    // The least weight that is kept, as the bits of a float: those of positive floats are in the order of the numbers.
    u32 least = 0;
    if (top_k > 0 && top_k < vocab) {
        u32 low = 0, high = 0x3f800001u; // 1 and the next float: fewer than top_k weigh that much
        while (high - low > 1) {
            u32 middle = low + (high - low) / 2;
            u64 n = 0;
            for (int i = tid; i < vocab; i += THREADS) n += __float_as_uint(weigh(i)) >= middle;
            if (block_sum(n, sums) >= (u64)top_k) low = middle;
            else high = middle;
        }
        least = low;
    }
    bool listed = false;
    int n = 0;
    if (top_p < 1) {
        u64 total = 0, kept = 0;
#pragma unroll 4
        for (int i = tid; i < vocab; i += THREADS) {
            float w = weigh(i);
            if (__float_as_uint(w) >= least) {
                total += mass_of(w);
                kept++;
            }
        }
        total = block_sum(total, sums);
        kept = block_sum(kept, sums);
        u64 wanted = (u64)((double)total * (double)fmaxf(top_p, 0));
        if (wanted == 0) wanted = 1;
        // Tokens under this weight have together less than 1 - top_p of the mass: none of them is in the nucleus.
        float floor = (float)((double)(total - min(wanted, total)) / (double)kept / UNIT) * 0.99f;
        u32 low = max(least, __float_as_uint(floor)), high = 0x3f800001u;
#pragma unroll 4
        for (int i = tid; i < vocab; i += THREADS) {
            float w = weigh(i);
            if (__float_as_uint(w) >= low) {
                int at = atomicAdd(&count, 1);
                if (at < CANDIDATES) {
                    weights[at] = w;
                    ids[at] = i;
                }
            }
        }
        __syncthreads();
        n = count;
        listed = n <= CANDIDATES;
        while (high - low > 1) {
            u32 middle = low + (high - low) / 2;
            u64 mass = 0;
            if (listed) {
                for (int i = tid; i < n; i += THREADS)
                    if (__float_as_uint(weights[i]) >= middle) mass += mass_of(weights[i]);
            } else {
                for (int i = tid; i < vocab; i += THREADS) {
                    float w = weigh(i);
                    if (__float_as_uint(w) >= middle) mass += mass_of(w);
                }
            }
            if (block_sum(mass, sums) >= wanted) low = middle;
            else high = middle;
        }
        least = low;
    }
    Best drawn = {-INFINITE, vocab};
    if (listed) {
        for (int i = tid; i < n; i += THREADS)
            if (__float_as_uint(weights[i]) >= least) drawn.see(__logf(weights[i]) - __logf(clock_of(seed, ids[i])), ids[i]);
    } else {
#pragma unroll 4
        for (int i = tid; i < vocab; i += THREADS)
            if (__float_as_uint(weigh(i)) >= least) drawn.see((x[i] - peak) * inverse - __logf(clock_of(seed, i)), i);
    }
    drawn = block_best(drawn);
    if (tid == 0) out[blockIdx.x] = drawn.id;
}
