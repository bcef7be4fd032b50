/* The table of functions between the core, which links no MPI, and the MPI unit, the one shared object that does.
 *
 * Plain C, so that a unit made by another compiler, or for another MPI, fits the same core. Functions that can fail
 * return a negative number and leave the reason in error_text(): -2 where another process has died, or has revoked the
 * communicator (ULFM), -1 for all else. Requests are the MPI's own handles, copied into 64 bits.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

#define RINGDP_MPI_TABLE_VERSION 4u
#define RINGDP_MPI_TABLE_SYMBOL "ringdp_mpi_table"

struct ringdp_mpi_table {
  uint32_t version;     /* RINGDP_MPI_TABLE_VERSION of the unit */
  const char* made_for; /* the library version of the MPI whose mpi.h it was compiled with */

  /* comm is the communicator's handle as mpi4py gives it; it stays the caller's. NULL on failure. */
  void* (*open)(uint64_t comm);
  void (*close)(void*);
  int (*rank)(void*);
  int (*size)(void*);
  int (*max_tag)(void*);
  int (*send)(void*, int peer, int tag, const void* data, size_t bytes, uint64_t* request);
  int (*receive)(void*, int peer, int tag, void* data, size_t bytes, uint64_t* request);
  /* 1 complete, 0 not yet; bytes: received (of a receive). A request that has failed is emptied, too. */
  int (*test)(void*, uint64_t* request, size_t* bytes);
  int (*arrived)(void*, int tag, int* from, size_t* bytes); /* 1 a message nobody receives yet, 0 none */
  int (*lost)(void*);                                       /* a rank that is gone, as MPI knows, or -1 */
  int (*cancel)(void*, uint64_t* request);
  void (*abort)(int code);
  const char* (*error_text)(void);
  int (*takes_gpu_memory)(void); /* as the MPI says: 1 it takes pointers to memory of CUDA, 0 it does not, -1 no word */
  int (*is_revoked)(void*);      /* 1 a process of it has died, or some process has revoked it; 0 no */
  int64_t (*pending)(void*);     /* requests that have not been completed or taken back: they have memory of ours */
};
