# make cuda          builds bin/xlstm-cuda: needs a C compiler and cuda.h (CUDA_INCLUDE), and no GPU
# make cuda-kernels  compiles the kernels anew: needs nvcc
# make cuda-vet      checks the Go side of the CUDA engine

CUDA_INCLUDE ?= /usr/local/cuda/include
NVCC         ?= nvcc
CUDA_DIR     := kernels/cuda
CUDA_SOURCES := $(addprefix $(CUDA_DIR)/,chunk.cu common.cuh gemm.cu gemv.cu gemv_input.cuh gemv_one.cu int8.cu kernels.cu misc.cu mlstm.cu mlstm.cuh one_input.cuh prepared.cuh wgmma.cu)
CUDA_STUB    := .cache/cuda-stub/libcuda.so
CUDA_ENV     := CGO_ENABLED=1 CGO_CFLAGS="-I$(CURDIR)/$(CUDA_DIR)/internal/driver/compat -I$(CUDA_INCLUDE)" CGO_LDFLAGS="-L$(CURDIR)/.cache/cuda-stub"

.PHONY: cuda cuda-vet cuda-test-binary cuda-kernels

cuda: $(CUDA_STUB)
	$(CUDA_ENV) go build -tags cuda -o bin/xlstm-cuda ./cmd/xlstm

cuda-vet: $(CUDA_STUB)
	$(CUDA_ENV) go vet -tags cuda ./$(CUDA_DIR)/...

# The tests that need a GPU, as one program to run where there is one, from $(CUDA_DIR).
cuda-test-binary: $(CUDA_STUB)
	$(CUDA_ENV) go test -c -tags cuda -o bin/cuda.test ./$(CUDA_DIR)

# Something to link against: every name of cuda.h, none of which does anything. The driver's own library takes its place at run time.
$(CUDA_STUB): $(CUDA_INCLUDE)/cuda.h
	@mkdir -p $(dir $@)
	grep -oE '\bcu[A-Z][A-Za-z0-9]*(_v[0-9]+)?\b' $< | sort -u | awk '{print "int " $$1 "(void){return 999;}"}' > $(dir $@)stub.c
	$${CC:-cc} -shared -fno-builtin -Wl,-soname,libcuda.so.1 -o $@ $(dir $@)stub.c

cuda-kernels: $(CUDA_SOURCES)
	$(NVCC) -O3 -std=c++17 -fatbin -Xfatbin=-compress-all -gencode arch=compute_80,code=sm_80 -gencode arch=compute_86,code=sm_86 -gencode arch=compute_89,code=sm_89 \
		-gencode arch=compute_90a,code=sm_90a -gencode arch=compute_90,code=compute_90 $(CUDA_DIR)/kernels.cu -o $(CUDA_DIR)/kernels.fatbin
	printf 'xlstm-kernels-sha256:%s' "$$(cat $(CUDA_SOURCES) | sha256sum | cut -d' ' -f1)" >> $(CUDA_DIR)/kernels.fatbin
