/* CUDA's driver, libcuda.so.1, as far as Triton and Inductor call it.

   No header is included: it would rename functions by version. */

#include <stddef.h>

#define NOTHING(name) \
    int name(void) { return 0; }
#define HANDLE(name)                   \
    int name(void **handle) {          \
        *handle = (void *)handle_room; \
        return 0;                      \
    }

static char handle_room[16];

/* The runtime's counter, where it is preloaded. */
extern __attribute__((weak)) unsigned long null_gpu_launches;

static int launch(void) {
    if (&null_gpu_launches) null_gpu_launches++;
    return 0;
}

int cuLaunchKernel(void) { return launch(); }
int cuLaunchKernelEx(void) { return launch(); }
int cuLaunchCooperativeKernel(void) { return launch(); }

int cuDriverGetVersion(int *version) {
    *version = 13000;
    return 0;
}

int cuDeviceGetCount(int *count) {
    *count = 1;
    return 0;
}

int cuDeviceGet(int *device, int number) {
    *device = 0;
    return 0;
}

int cuCtxGetDevice(int *device) {
    *device = 0;
    return 0;
}

HANDLE(cuCtxGetCurrent)
HANDLE(cuDevicePrimaryCtxRetain)
HANDLE(cuModuleLoad)
HANDLE(cuModuleLoadData)
HANDLE(cuModuleLoadDataEx)
HANDLE(cuModuleGetFunction)
HANDLE(cuLibraryLoadData)
HANDLE(cuLibraryGetKernel)

int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    if (flags) *flags = 0;
    *active = 1;
    return 0;
}

/* The numbers are those of CUdevice_attribute in cuda.h. */
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
    case 1: *value = 1024; break;    /* threads in a block */
    case 8: *value = 49152; break;   /* shared memory of a block */
    case 10: *value = 32; break;     /* threads in a warp */
    case 12: *value = 65536; break;  /* registers of a block */
    case 13: *value = 1980000; break; /* clock, kHz */
    case 16: *value = 132; break;    /* multiprocessors */
    case 36: *value = 3201000; break; /* clock of the memory, kHz */
    case 37: *value = 6144; break;   /* width of its bus */
    case 39: *value = 2048; break;   /* threads of a multiprocessor */
    case 75: *value = 9; break;      /* compute capability */
    case 76: *value = 0; break;
    case 97: *value = 232448; break; /* shared memory that a block can ask for */
    default: *value = 1;
    }
    return 0;
}

/* Of a kernel: at most 1024 threads (0), 64 registers (4), nothing else. */
int cuFuncGetAttribute(int *value, int attribute, void *function) {
    *value = attribute == 4 ? 64 : attribute == 0 ? 1024 : 0;
    return 0;
}

int cuPointerGetAttribute(void *value, int attribute, unsigned long pointer) {
    *(unsigned long *)value = pointer;
    return 0;
}

int cuGetErrorString(int error, const char **text) {
    *text = "the null GPU has no such function";
    return 0;
}

int cuGetErrorName(int error, const char **text) { return cuGetErrorString(error, text); }

/* CUDA_ERROR_NOT_FOUND: who asks does without. */
int cuGetProcAddress(const char *name, void **function) {
    *function = NULL;
    return 500;
}

int cuGetProcAddress_v2(const char *name, void **function) { return cuGetProcAddress(name, function); }

NOTHING(cuInit)
NOTHING(cuCtxSetCurrent)
NOTHING(cuCtxGetLimit)
NOTHING(cuCtxSetLimit)
NOTHING(cuModuleUnload)
NOTHING(cuFuncSetAttribute)
NOTHING(cuFuncSetCacheConfig)
NOTHING(cuKernelGetAttribute)
NOTHING(cuOccupancyMaxActiveBlocksPerMultiprocessor)
NOTHING(cuOccupancyMaxActiveClusters)
NOTHING(cuTensorMapEncodeTiled)
NOTHING(cuLinkCreate_v2)
NOTHING(cuLinkAddData_v2)
NOTHING(cuLinkComplete)
