/* Functions of CUDA's runtime and of cuBLAS that do nothing, or only count or hand out a handle.

   No header is included: what they are given does not matter. */

#include "null_gpu.h"

#define NOTHING(name) \
    int name(void) { return 0; }
#define LAUNCH(name)         \
    int name(void) {         \
        null_gpu_launches++; \
        return 0;            \
    }
#define HANDLE(name)                          \
    int name(void **handle) {                 \
        *handle = (void *)&null_gpu_launches; \
        return 0;                             \
    }

/* The runtime */
NOTHING(cudaSetDevice)
NOTHING(cudaGetLastError)
NOTHING(cudaPeekAtLastError)
NOTHING(cudaFuncSetAttribute)
NOTHING(cudaStreamDestroy)
NOTHING(cudaStreamQuery)
NOTHING(cudaStreamWaitEvent)
NOTHING(cudaThreadExchangeStreamCaptureMode)
NOTHING(cudaEventDestroy)
NOTHING(cudaEventQuery)
NOTHING(cudaEventRecord)
NOTHING(cudaEventRecordWithFlags)
NOTHING(cudaGraphDestroy)
NOTHING(cudaGraphExecDestroy)
NOTHING(cudaMemset)
NOTHING(cudaProfilerStart)
NOTHING(cudaProfilerStop)

/* cuBLAS */
HANDLE(cublasCreate_v2)
NOTHING(cublasDestroy_v2)
NOTHING(cublasSetStream_v2)
NOTHING(cublasSetWorkspace_v2)
NOTHING(cublasSetMathMode)
NOTHING(cublasSetPointerMode_v2)
LAUNCH(cublasGemmEx)
LAUNCH(cublasGemmStridedBatchedEx)
LAUNCH(cublasSgemm_v2)
LAUNCH(cublasSgemmEx)
LAUNCH(cublasSgemmStridedBatched)
LAUNCH(cublasDgemm_v2)
LAUNCH(cublasSdot_v2)
LAUNCH(cublasDotEx)

int cublasGetMathMode(void *handle, int *mode) {
    *mode = 0;
    return 0;
}

int cublasGetPointerMode_v2(void *handle, int *mode) {
    *mode = 0;
    return 0;
}

HANDLE(cublasLtMatmulDescCreate)
NOTHING(cublasLtMatmulDescDestroy)
NOTHING(cublasLtMatmulDescSetAttribute)
HANDLE(cublasLtMatmulPreferenceCreate)
NOTHING(cublasLtMatmulPreferenceDestroy)
NOTHING(cublasLtMatmulPreferenceSetAttribute)
HANDLE(cublasLtMatrixLayoutCreate)
NOTHING(cublasLtMatrixLayoutDestroy)
NOTHING(cublasLtMatrixLayoutSetAttribute)
LAUNCH(cublasLtMatmul)

/* One algorithm; PyTorch zeroes what describes it. */
int cublasLtMatmulAlgoGetHeuristic(void *handle, void *operation, void *a, void *b, void *c, void *d,
                                   void *preference, int wanted, void *results, int *found) {
    *found = 1;
    return 0;
}
