// Everything of a block that works row by row: embedding, RMS norm with the residual added, head norm with rotation, the
// gate of the feed-forward part. The residual stream is f32.

// x[row] = table[tokens[row]]; one block a row.
extern "C" __global__ void embed(const int* tokens, const T* table, float* x, int hidden) {
    const T* from = table + (size_t)tokens[blockIdx.x] * hidden;
    float* to = x + (size_t)blockIdx.x * hidden;
    for (int i = threadIdx.x; i < hidden; i += blockDim.x) to[i] = wide(from[i]);
}

// x[row] += delta[row] (delta may be null); out[row] = x[row] / sqrt(mean(x²) + eps) · weight (arXiv 1910.07467).
// With `picked`, output row i is of input row picked[i], and x stays as it is. One block a row.
extern "C" __global__ void rms_norm(
    float* x, const T* delta, const float* weight, T* out, const int* picked, int hidden, float eps) {
    __shared__ float scratch[32];
    size_t row = picked ? picked[blockIdx.x] : blockIdx.x;
    float* in = x + row * hidden;
    const T* add = delta ? delta + row * hidden : 0;
    float squares = 0;
    for (int i = threadIdx.x; i < hidden; i += blockDim.x) {
        float value = in[i];
        if (add) {
            value += wide(add[i]);
            if (!picked) in[i] = value;
        }
        squares += value * value;
    }
    float scale = rsqrtf(block_sum(squares, scratch) / hidden + eps);
    T* to = out + (size_t)blockIdx.x * hidden;
    for (int i = threadIdx.x; i < hidden; i += blockDim.x) {
        float value = in[i];
        if (add && picked) value += wide(add[i]);
        to[i] = narrow(value * scale * weight[i]);
    }
}

// Per row of qkv [rows, (HEADS + 2 KV_HEADS) · DIM]: queries and keys normed (where the weights are given) and rotated, the
// pair of dimension i being i + DIM / 2; queries stay in place, keys and values go to `places[row]` of the cache
// [pages, KV_HEADS, PAGE, DIM]. One warp a head.
extern "C" __global__ void heads(
    T* qkv, const float* q_norm, const float* k_norm, const float* cos, const float* sin, const int* positions,
    const int* places, T* keys, T* values, int rows, float eps) {
    const int count = HEADS + 2 * KV_HEADS, half = DIM / 2;
    int lane = threadIdx.x & 31;
    size_t unit = (size_t)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    if (unit >= (size_t)rows * count) return;
    int row = unit / count, head = unit % count;
    T* in = qkv + unit * DIM;
    int place = places[row], kv = head < HEADS + KV_HEADS ? head - HEADS : head - HEADS - KV_HEADS;
    size_t to = (((size_t)(place / PAGE) * KV_HEADS + kv) * PAGE + place % PAGE) * DIM;
    if (head >= HEADS + KV_HEADS) {
        for (int i = lane; i < DIM; i += 32) values[to + i] = in[i];
        return;
    }
    const float* weight = head < HEADS ? q_norm : k_norm;
    float scale = 1;
    if (weight) {
        float squares = 0;
        for (int i = lane; i < DIM; i += 32) {
            float value = wide(in[i]);
            squares += value * value;
        }
        scale = rsqrtf(warp_sum(squares) / DIM + eps);
    }
    T* out = head < HEADS ? in : keys + to;
    const float *c = cos + (size_t)positions[row] * half, *s = sin + (size_t)positions[row] * half;
    for (int i = lane; i < half; i += 32) {
        float a = wide(in[i]) * scale, b = wide(in[i + half]) * scale;
        if (weight) {
            a *= weight[i];
            b *= weight[i + half];
        }
        out[i] = narrow(a * c[i] - b * s[i]);
        out[i + half] = narrow(b * c[i] + a * s[i]);
    }
}

// out[i] = silu(gate) · up of rows [gate | up], each `ffn` wide; one block a row.
extern "C" __global__ void gate(const T* gate_up, T* out, int ffn) {
    const T* g = gate_up + (size_t)blockIdx.x * 2 * ffn;
    T* to = out + (size_t)blockIdx.x * ffn;
    for (int i = threadIdx.x; i < ffn; i += blockDim.x) {
        float x = wide(g[i]);
        to[i] = narrow(x / (1 + __expf(-x)) * wide(g[ffn + i]));
    }
}

// Copies one page of one layer's keys or values, `size` elements.
extern "C" __global__ void copy_page(T* cache, int from, int to, int size) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < size; i += gridDim.x * blockDim.x)
        cache[(size_t)to * size + i] = cache[(size_t)from * size + i];
}
