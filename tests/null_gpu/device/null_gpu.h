/* What the parts of the null GPU share; ../conftest.py builds it. */

/* Read by the programs through ctypes. */
extern unsigned long null_gpu_launches;    /* kernels, matrix products, copies and fills */
extern unsigned long null_gpu_waits;       /* times that the host waited for the device */
extern unsigned long null_gpu_graphs;      /* CUDA graphs captured */
extern unsigned long null_gpu_graph_nodes; /* launches in the last of them */
extern unsigned long null_gpu_replays;     /* launches of whole graphs */
extern unsigned long null_gpu_forbidden;   /* calls that a capture does not allow */
