// What the other files share. Compiled at run time for one model (see ../program.rs), which defines:
//   HALF           1: weights, activations and cache are bf16; 0: f32
//   HEADS, KV_HEADS, DIM, PAGE
// What the language lacks stands in ptx.cu; emulate.cpp has the same for a CPU, where the tests run these kernels.

#if HALF
typedef unsigned short T;
__device__ __forceinline__ float wide(T x) { return __uint_as_float((u32)x << 16); }
__device__ __forceinline__ T narrow(float x) { return to_half(x); }
#else
typedef float T;
__device__ __forceinline__ float wide(T x) { return x; }
__device__ __forceinline__ T narrow(float x) { return x; }
#endif

#define FULL 0xffffffffu
#define GROUP (HEADS / KV_HEADS)
#define INFINITE __int_as_float(0x7f800000)

__device__ __forceinline__ float warp_sum(float x) {
    for (int d = 16; d > 0; d >>= 1) x += __shfl_xor_sync(FULL, x, d);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
    for (int d = 16; d > 0; d >>= 1) x = fmaxf(x, __shfl_xor_sync(FULL, x, d));
    return x;
}

// Sum over a block of whole warps; every thread gets it. `scratch` holds 32 values; usable again after the call.
template <typename V> __device__ __forceinline__ V block_sum(V x, V* scratch) {
    for (int d = 16; d > 0; d >>= 1) x += __shfl_xor_sync(FULL, x, d);
    int warps = blockDim.x >> 5;
    __syncthreads();
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = x;
    __syncthreads();
    V sum = 0;
    for (int w = 0; w < warps; w++) sum += scratch[w];
    return sum;
}
