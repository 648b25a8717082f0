// Attention over the paged cache [pages, KV_HEADS, PAGE, DIM]. The query heads that share a key/value head are rows of one
// tile, so that keys and values are read once for all of them.
//
// A tile is int4 { first row of the step, positions, position of the first, offset of its page table }. Its tile row r is
// position r / GROUP, query head r % GROUP of the key/value head. Queries are in qkv [rows, stride]; out is [rows, HEADS · DIM].

// One warp a row and head; any DIM, any type. For f32 and for widths that the tensor cores below do not take.
extern "C" __global__ void attend_plain(
    const T* qkv, int stride, T* out, const T* keys, const T* values, const int* tables, const int* row_tables,
    const int* positions, int rows, float scale) {
    const int PER = (DIM + 31) / 32;
    int lane = threadIdx.x & 31;
    size_t unit = (size_t)blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    if (unit >= (size_t)rows * HEADS) return;
    int row = unit / HEADS, head = unit % HEADS, kv = head / GROUP;
    float q[PER], sum[PER], high = -INFINITE, total = 0;
    for (int i = 0; i < PER; i++) {
        int d = lane + 32 * i;
        q[i] = d < DIM ? wide(qkv[(size_t)row * stride + head * DIM + d]) * scale : 0;
        sum[i] = 0;
    }
    const int* table = tables + row_tables[row];
    for (int p = 0; p <= positions[row]; p++) {
        size_t at = (((size_t)table[p / PAGE] * KV_HEADS + kv) * PAGE + p % PAGE) * DIM;
        float score = 0;
        for (int i = 0; i < PER; i++) {
            int d = lane + 32 * i;
            if (d < DIM) score += q[i] * wide(keys[at + d]);
        }
        score = warp_sum(score);
        float now = fmaxf(high, score), keep = __expf(high - now), weight = __expf(score - now);
        total = total * keep + weight;
        for (int i = 0; i < PER; i++) {
            int d = lane + 32 * i;
            if (d < DIM) sum[i] = sum[i] * keep + weight * wide(values[at + d]);
        }
        high = now;
    }
    for (int i = 0; i < PER; i++) {
        int d = lane + 32 * i;
        if (d < DIM) out[((size_t)row * HEADS + head) * DIM + d] = narrow(sum[i] / total);
    }
}

#if HALF && (DIM == 64 || DIM == 128) && PAGE == 64 && GROUP <= 16

#define CHUNKS (DIM / 8)   // pieces of 16 bytes in a row of a page
#define STEPS (DIM / 16)   // inner steps of the product with keys
#define COLUMNS (DIM / 8)  // result tiles of the product with values

// Byte offset of a 16-byte piece in a page: pieces of a row change places so that eight rows of one piece lie in different banks.
__device__ __forceinline__ u32 piece(int row, int chunk) { return (row * CHUNKS + (chunk ^ (row & 7))) * 16; }

// Starts to copy one page of a head to shared memory; 128 threads.
__device__ __forceinline__ void fetch(u32 to, const T* from) {
    for (int i = threadIdx.x; i < PAGE * CHUNKS; i += 128) copy_later(to + piece(i / CHUNKS, i % CHUNKS), from + (size_t)i * 8);
}

// Four warps. SPLIT: one tile of 16 rows, each warp takes 16 keys of every page, and the parts are merged at the end (single
// tokens). Otherwise: a tile of 64 rows, each warp takes 16 of them and all keys (prompts).
template <bool SPLIT>
__device__ void attend(
    const T* qkv, int stride, T* out, const T* keys, const T* values, const int* tables, const int4* tiles, float scale) {
    DYNAMIC_SHARED(shared);
    const u32 PAGE_BYTES = PAGE * DIM * 2;
    const int TILES = SPLIT ? 2 : 8, INNER = SPLIT ? 1 : 4;
    u32 base = shared_address(shared);
    int4 tile = tiles[blockIdx.x];
    int kv = blockIdx.y, warp = threadIdx.x >> 5, lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
    int used = tile.y * GROUP, first = SPLIT ? 0 : warp * 16, key0 = SPLIT ? warp * 16 : 0;
    const int* table = tables + tile.w;

    // This thread's two rows of the tile, the last position each may see, and their queries.
    int row[2], limit[2];
    const T* query[2];
    for (int h = 0; h < 2; h++) {
        row[h] = min(first + g + 8 * h, used - 1);
        limit[h] = tile.z + row[h] / GROUP;
        query[h] = qkv + (size_t)(tile.x + row[h] / GROUP) * stride + (kv * GROUP + row[h] % GROUP) * DIM;
    }
    u32 q[STEPS][4];
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        q[s][0] = *(const u32*)(query[0] + s * 16 + 2 * t);
        q[s][1] = *(const u32*)(query[1] + s * 16 + 2 * t);
        q[s][2] = *(const u32*)(query[0] + s * 16 + 2 * t + 8);
        q[s][3] = *(const u32*)(query[1] + s * 16 + 2 * t + 8);
    }

    float o[COLUMNS][4], high[2] = {-INFINITE, -INFINITE}, total[2] = {0, 0};
#pragma unroll
    for (int n = 0; n < COLUMNS; n++) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0;
    scale *= 1.44269504f; // exp2 from here on

    int pages = (tile.z + tile.y + PAGE - 1) / PAGE;
    auto load = [&](int p) {
        size_t at = ((size_t)table[p] * KV_HEADS + kv) * PAGE * DIM;
        u32 to = base + (p & 1) * 2 * PAGE_BYTES;
        fetch(to, keys + at);
        fetch(to + PAGE_BYTES, values + at);
        copies_end();
    };
    load(0);
    for (int p = 0; p < pages; p++) {
        if (p + 1 < pages) {
            load(p + 1);
            copies_wait<1>();
        } else {
            copies_wait<0>();
        }
        __syncthreads();
        u32 k = base + (p & 1) * 2 * PAGE_BYTES, v = k + PAGE_BYTES;
        // Behind the last position the page holds what another sequence left, numbers or not; their weight is 0, and 0 times
        // NaN is NaN.
        int filled = tile.z + tile.y - p * PAGE;
        if (filled < PAGE) {
            uint4* rows = (uint4*)(shared + (v - base));
            for (int i = filled * CHUNKS + threadIdx.x; i < PAGE * CHUNKS; i += 128) rows[i] = make_uint4(0, 0, 0, 0);
            __syncthreads();
        }

        float s[TILES][4];
#pragma unroll
        for (int j = 0; j < TILES; j++) {
            s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0;
#pragma unroll
            for (int step = 0; step < STEPS; step += 2) {
                u32 b[4];
                matrices(b, k + piece(key0 + j * 8 + (lane & 7), step * 2 + (lane >> 3)));
                product(s[j], q[step], b[0], b[1]);
                product(s[j], q[step + 1], b[2], b[3]);
            }
        }
        bool edge = p * PAGE + PAGE - 1 > tile.z;
        float now[2] = {high[0], high[1]};
#pragma unroll
        for (int j = 0; j < TILES; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int key = p * PAGE + key0 + j * 8 + 2 * t + (i & 1);
                s[j][i] = edge && key > limit[i >> 1] ? -INFINITE : s[j][i] * scale;
                now[i >> 1] = fmaxf(now[i >> 1], s[j][i]);
            }
        float keep[2], safe[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            now[h] = fmaxf(now[h], __shfl_xor_sync(FULL, now[h], 1));
            now[h] = fmaxf(now[h], __shfl_xor_sync(FULL, now[h], 2));
            safe[h] = now[h] == -INFINITE ? 0 : now[h]; // a warp that has seen no key yet
            keep[h] = exp2f(high[h] - safe[h]);
            high[h] = now[h];
            total[h] *= keep[h];
        }
#pragma unroll
        for (int j = 0; j < TILES; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[j][i] = exp2f(s[j][i] - safe[i >> 1]);
                total[i >> 1] += s[j][i];
            }
#pragma unroll
        for (int n = 0; n < COLUMNS; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) o[n][i] *= keep[i >> 1];
#pragma unroll
        for (int step = 0; step < INNER; step++) {
            const float *x = s[2 * step], *y = s[2 * step + 1];
            u32 a[4] = {pack(x[0], x[1]), pack(x[2], x[3]), pack(y[0], y[1]), pack(y[2], y[3])};
#pragma unroll
            for (int n = 0; n < COLUMNS; n += 2) {
                u32 b[4];
                int key = key0 + step * 16 + ((lane >> 3) & 1) * 8 + (lane & 7);
                matrices_turned(b, v + piece(key, n + (lane >> 4)));
                product(o[n], a, b[0], b[1]);
                product(o[n + 1], a, b[2], b[3]);
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        total[h] += __shfl_xor_sync(FULL, total[h], 1);
        total[h] += __shfl_xor_sync(FULL, total[h], 2);
    }

    if (SPLIT) {
        // [4 warps][16 rows][DIM] results, then [4][16] highest scores, then [4][16] totals.
        float* parts = (float*)shared;
        float *highs = parts + 4 * 16 * DIM, *totals = highs + 64;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int r = warp * 16 + g + 8 * h;
#pragma unroll
            for (int n = 0; n < COLUMNS; n++)
                *(float2*)(parts + r * DIM + n * 8 + 2 * t) = make_float2(o[n][2 * h], o[n][2 * h + 1]);
            if (t == 0) {
                highs[r] = high[h];
                totals[r] = total[h];
            }
        }
        __syncthreads();
        for (int i = threadIdx.x; i < used * DIM; i += 128) {
            int r = i / DIM, d = i % DIM;
            float top = -INFINITE, sum = 0, mass = 0;
            for (int w = 0; w < 4; w++) top = fmaxf(top, highs[w * 16 + r]);
            for (int w = 0; w < 4; w++) {
                float weight = exp2f(highs[w * 16 + r] - top);
                sum += weight * parts[(w * 16 + r) * DIM + d];
                mass += weight * totals[w * 16 + r];
            }
            out[((size_t)(tile.x + r / GROUP) * HEADS + kv * GROUP + r % GROUP) * DIM + d] = narrow(sum / mass);
        }
    } else {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int r = first + g + 8 * h;
            if (r >= used) continue;
            T* to = out + ((size_t)(tile.x + r / GROUP) * HEADS + kv * GROUP + r % GROUP) * DIM;
#pragma unroll
            for (int n = 0; n < COLUMNS; n++)
                *(u32*)(to + n * 8 + 2 * t) = pack(o[n][2 * h] / total[h], o[n][2 * h + 1] / total[h]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(128) attend_prompts(
    const T* qkv, int stride, T* out, const T* keys, const T* values, const int* tables, const int4* tiles, float scale) {
    attend<false>(qkv, stride, out, keys, values, tables, tiles, scale);
}
extern "C" __global__ void __launch_bounds__(128) attend_tokens(
    const T* qkv, int stride, T* out, const T* keys, const T* values, const int* tables, const int4* tiles, float scale) {
    attend<true>(qkv, stride, out, keys, values, tables, tiles, scale);
}
#endif
