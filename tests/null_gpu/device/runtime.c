/* CUDA's runtime, as far as PyTorch calls it: one H200 whose kernels do nothing.

   Preloaded, these functions stand before those of libcudart.so.13. Memory is real and zero until the host
   copies something there; it takes room only where it is touched. Functions without behaviour are in
   nothing.c. */

#include <cuda_runtime_api.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "null_gpu.h"

#define MEMORY 150000000000UL
#define PAGE 4096UL

unsigned long null_gpu_launches, null_gpu_waits, null_gpu_graphs, null_gpu_graph_nodes, null_gpu_replays,
    null_gpu_forbidden;

static size_t allocated;
static int capturing;
static unsigned long launches_before_capture;
static size_t handles = 0x1000;

static void *new_handle(void) { return (void *)(handles += 16); }

/* The host waits for the device, which no graph can contain. */
static cudaError_t wait_for_device(const char *call) {
    if (capturing) {
        null_gpu_forbidden++;
        fprintf(stderr, "null GPU: %s while a graph is captured\n", call);
        return cudaErrorStreamCaptureUnsupported;
    }
    null_gpu_waits++;
    return cudaSuccess;
}

/* -- The device -- */

cudaError_t cudaGetDeviceCount(int *count) {
    *count = 1;
    return cudaSuccess;
}

cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device) {
    memset(properties, 0, sizeof *properties);
    strcpy(properties->name, "NVIDIA H200");
    properties->major = 9;
    properties->multiProcessorCount = 132;
    properties->totalGlobalMem = MEMORY;
    properties->sharedMemPerBlock = 49152;
    properties->sharedMemPerBlockOptin = 232448;
    properties->sharedMemPerMultiprocessor = 233472;
    properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = 1024;
    properties->maxThreadsPerMultiProcessor = 2048;
    properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;
    properties->maxThreadsDim[2] = 64;
    properties->maxGridSize[0] = 2147483647;
    properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
    properties->l2CacheSize = 52428800;
    properties->memoryBusWidth = 6144;
    properties->unifiedAddressing = properties->concurrentKernels = 1;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = 132; break;
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 232448; break;
    default: *value = 1;
    }
    return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) {
    *can = 0;
    return cudaSuccess;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned version,
                                             unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *result) {
    *function = NULL;
    if (result) *result = cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}

/* -- Memory -- */

cudaError_t cudaMemGetInfo(size_t *unused, size_t *total) {
    *unused = MEMORY - allocated;
    *total = MEMORY;
    return cudaSuccess;
}

/* The page before each block holds its size. */
cudaError_t cudaMalloc(void **block, size_t size) {
    *block = NULL;
    if (allocated + size > MEMORY) return cudaErrorMemoryAllocation;
    char *page = mmap(NULL, PAGE + size, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (page == MAP_FAILED) return cudaErrorMemoryAllocation;
    *(size_t *)page = size;
    allocated += size;
    *block = page + PAGE;
    return cudaSuccess;
}

cudaError_t cudaFree(void *block) {
    if (block == NULL) return cudaSuccess;
    char *page = (char *)block - PAGE;
    size_t size = *(size_t *)page;
    allocated -= size;
    munmap(page, PAGE + size);
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **block, size_t size, unsigned flags) {
    *block = malloc(size);
    return *block == NULL ? cudaErrorMemoryAllocation : cudaSuccess;
}

cudaError_t cudaFreeHost(void *block) {
    free(block);
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *target, const void *source, size_t size, enum cudaMemcpyKind kind) {
    cudaError_t status = wait_for_device("cudaMemcpy");
    if (status == cudaSuccess) memcpy(target, source, size);
    return status;
}

cudaError_t cudaMemcpyAsync(void *target, const void *source, size_t size, enum cudaMemcpyKind kind,
                            cudaStream_t stream) {
    null_gpu_launches++;
    if (kind == cudaMemcpyDeviceToDevice) return cudaSuccess;
    if (capturing) {
        null_gpu_forbidden++;
        fprintf(stderr, "null GPU: %zu bytes copied to or from the host while a graph is captured\n", size);
        return cudaErrorStreamCaptureUnsupported;
    }
    memcpy(target, source, size);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *target, int value, size_t size, cudaStream_t stream) {
    null_gpu_launches++;
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *pointer) {
    memset(attributes, 0, sizeof *attributes);
    attributes->type = cudaMemoryTypeUnregistered;
    attributes->device = -1;
    return cudaSuccess;
}

/* -- Streams, events, waits -- */

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
    *stream = new_handle();
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    *event = new_handle();
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event) {
    *event = new_handle();
    return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    *milliseconds = 1;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return wait_for_device("cudaStreamSynchronize"); }

cudaError_t cudaDeviceSynchronize(void) { return wait_for_device("cudaDeviceSynchronize"); }

cudaError_t cudaEventSynchronize(cudaEvent_t event) { return wait_for_device("cudaEventSynchronize"); }

/* -- Launches -- */

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *function, void **arguments) {
    null_gpu_launches++;
    return cudaSuccess;
}

#undef __cudaLaunchKernel
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared,
                               cudaStream_t stream) {
    null_gpu_launches++;
    return cudaSuccess;
}

cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
    *kernel = new_handle();
    return cudaSuccess;
}

static __thread struct {
    dim3 grid, block;
    size_t shared;
    void *stream;
} configuration;

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void *stream) {
    configuration.grid = grid;
    configuration.block = block;
    configuration.shared = shared;
    configuration.stream = stream;
    return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    *grid = configuration.grid;
    *block = configuration.block;
    *shared = configuration.shared;
    *(void **)stream = configuration.stream;
    return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *function) {
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    attributes->binaryVersion = attributes->ptxVersion = 90;
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *function,
                                                                   int threads, size_t shared,
                                                                   unsigned flags) {
    *blocks = 2;
    return cudaSuccess;
}

/* -- Graphs: a capture counts launches, and refuses what CUDA's would refuse -- */

static enum cudaStreamCaptureStatus capture_status(void) {
    return capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = capture_status();
    return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status,
                                     unsigned long long *id, cudaGraph_t *graph,
                                     const cudaGraphNode_t **dependencies, const cudaGraphEdgeData **edges,
                                     size_t *count) {
    *status = capture_status();
    if (id) *id = null_gpu_graphs + 1;
    if (count) *count = 0;
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    capturing = 1;
    launches_before_capture = null_gpu_launches;
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    capturing = 0;
    null_gpu_graphs++;
    null_gpu_graph_nodes = null_gpu_launches - launches_before_capture;
    *graph = new_handle();
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *executable, cudaGraph_t graph,
                                          unsigned long long flags) {
    *executable = new_handle();
    return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count) {
    *count = null_gpu_graph_nodes;
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
    null_gpu_replays++;
    return cudaSuccess;
}
