"""Version-4 UUIDs (RFC 9562) as text, from the system's CSPRNG drawn in batches.

One call of ``os.urandom`` serves `BATCH` identifiers, and the bytes of each are wiped as it is made. A batch is used
only in the process that drew it: it records the fork count (`synthex_fast._forks`, which sees forks made in C too), and
a child draws its own. On the free-threaded build each thread has its own batch, so no lock is taken there either.

`keyed_id` makes an identifier that can be computed again: SipHash-2-4 (Aumasson and Bernstein, 2012) of a number under
a secret key, with a result of 128 bits. Whoever lacks the key can't tell it from random bits.

Records use that for identifiers that are made when first read. Such a one is fixed from the start, because a fork may
copy the record before that: it belongs to the record's serial number. Parent and child know the key and so make the
same identifier. Each process numbers on from where its parent was and draws a key of its own for the records that it
makes, so that no two records share both number and key. The keys inherited from parents are kept for the records
inherited with them.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from synthex_fast._forks cimport forks_seen
from synthex_fast._sync cimport Lock, lock, unlikely, unlock

cdef extern from *:
    """
    #include <string.h>
    #include "Python.h"

    #define SYNTHEX_ID_BYTES 16
    #define SYNTHEX_ID_BATCH 128

    typedef struct {
        int left;               /* unused identifiers: the first `left` in `bytes` */
        uint32_t forks;         /* the fork count of the process that drew them */
        unsigned char bytes[SYNTHEX_ID_BATCH * SYNTHEX_ID_BYTES];
    } synthex_id_batch;

    #ifdef Py_GIL_DISABLED
      static SYNTHEX_THREAD_LOCAL synthex_id_batch synthex_ids;
    #else
      static synthex_id_batch synthex_ids;
    #endif

    static synthex_id_batch *synthex_ids_here(void) { return &synthex_ids; }

    static const char synthex_hex[] = "0123456789abcdef";

    static inline char *synthex_hex_pairs(char *text, const unsigned char *bytes, int count) {
        int i;
        for (i = 0; i < count; i++) {
            *text++ = synthex_hex[bytes[i] >> 4];
            *text++ = synthex_hex[bytes[i] & 15];
        }
        return text;
    }

    /* The 36 characters of a variant-10 UUID of that version. */
    static void synthex_id_text(char *text, unsigned char *bytes, int version) {
        bytes[6] = (unsigned char)((bytes[6] & 0x0F) | version << 4);
        bytes[8] = (unsigned char)((bytes[8] & 0x3F) | 0x80);
        text = synthex_hex_pairs(text, bytes, 4);
        *text++ = '-';
        text = synthex_hex_pairs(text, bytes + 4, 2);
        *text++ = '-';
        text = synthex_hex_pairs(text, bytes + 6, 2);
        *text++ = '-';
        text = synthex_hex_pairs(text, bytes + 8, 2);
        *text++ = '-';
        synthex_hex_pairs(text, bytes + 10, 6);
    }

    #define SYNTHEX_ROTATE(x, b) (((x) << (b)) | ((x) >> (64 - (b))))

    static inline void synthex_sip(uint64_t *v, int rounds) {
        while (rounds--) {
            v[0] += v[1]; v[1] = SYNTHEX_ROTATE(v[1], 13) ^ v[0]; v[0] = SYNTHEX_ROTATE(v[0], 32);
            v[2] += v[3]; v[3] = SYNTHEX_ROTATE(v[3], 16) ^ v[2];
            v[0] += v[3]; v[3] = SYNTHEX_ROTATE(v[3], 21) ^ v[0];
            v[2] += v[1]; v[1] = SYNTHEX_ROTATE(v[1], 17) ^ v[2]; v[2] = SYNTHEX_ROTATE(v[2], 32);
        }
    }

    static inline void synthex_sip_word(uint64_t *v, uint64_t word) {
        v[3] ^= word;
        synthex_sip(v, 2);
        v[0] ^= word;
    }

    /* SipHash-2-4-128 of the number's eight bytes, in this machine's byte order: it never leaves the machine. */
    static void synthex_keyed_bytes(unsigned char *bytes, const uint64_t *key, uint64_t number) {
        uint64_t v[4], half;
        v[0] = key[0] ^ 0x736f6d6570736575ULL;
        v[1] = key[1] ^ 0x646f72616e646f6dULL ^ 0xee;
        v[2] = key[0] ^ 0x6c7967656e657261ULL;
        v[3] = key[1] ^ 0x7465646279746573ULL;
        synthex_sip_word(v, number);
        synthex_sip_word(v, (uint64_t)sizeof number << 56);
        v[2] ^= 0xee;
        synthex_sip(v, 4);
        half = v[0] ^ v[1] ^ v[2] ^ v[3];
        memcpy(bytes, &half, 8);
        v[1] ^= 0xdd;
        synthex_sip(v, 4);
        half = v[0] ^ v[1] ^ v[2] ^ v[3];
        memcpy(bytes + 8, &half, 8);
    }
    """
    enum:
        ID_BYTES "SYNTHEX_ID_BYTES"
        BATCH "SYNTHEX_ID_BATCH"
    ctypedef struct Batch "synthex_id_batch":
        int left
        uint32_t forks
        unsigned char* bytes
    Batch* batch_here "synthex_ids_here"() noexcept nogil
    void write_text "synthex_id_text"(char*, unsigned char*, int) noexcept nogil
    void keyed_bytes "synthex_keyed_bytes"(unsigned char*, const uint64_t*, uint64_t) noexcept nogil

# Declared here: this module needs the two with a `str`, which Cython then manages.
cdef extern from "Python.h":
    str PyUnicode_New(Py_ssize_t size, Py_UCS4 maxchar)
    void* PyUnicode_DATA(object text) noexcept


cdef object urandom
from os import urandom

__all__ = ["uuid4_text"]


cdef int refill() except -1:
    cdef bytes drawn = urandom(BATCH * ID_BYTES)
    # urandom may have run other threads, and one of them may have forked. So look the batch up and fill it only now;
    # identifiers that it still holds are overwritten unused.
    cdef Batch* batch = batch_here()
    memcpy(batch.bytes, PyBytes_AS_STRING(drawn), BATCH * ID_BYTES)
    batch.left = BATCH
    batch.forks = forks_seen
    memset(PyBytes_AS_STRING(drawn), 0, BATCH * ID_BYTES)
    return 0


cdef str new_id():
    cdef str text = PyUnicode_New(36, 127)
    cdef Batch* batch = batch_here()
    cdef unsigned char* bytes
    while unlikely(batch.left == 0 or batch.forks != forks_seen):
        refill()
        batch = batch_here()
    batch.left -= 1
    bytes = batch.bytes + batch.left * ID_BYTES
    write_text(<char*>PyUnicode_DATA(text), bytes, 4)
    memset(bytes, 0, ID_BYTES)
    return text


cdef str keyed_id(const uint64_t* key, uint64_t number):
    cdef str text = PyUnicode_New(36, 127)
    cdef unsigned char bytes[ID_BYTES]
    keyed_bytes(bytes, key, number)
    write_text(<char*>PyUnicode_DATA(text), bytes, 4)
    return text


# --- Serial numbers, and the identifiers that belong to them ---

cdef enum:
    SERIALS = 1 << 20           # given to a thread at a time


cdef struct Generation:
    # A process that made records: this one, or one that it was forked from.
    uint64_t key[2]
    uint64_t first              # serial number of the first record it made


# The oldest first. `guard` protects all of these.
cdef Lock guard
cdef Generation* generations = NULL
cdef int generation_count = 0
cdef uint64_t next_serials = 0
cdef uint32_t generation_forks = 0      # the fork count of the process that the last generation stands for


cdef int refill_serials(Serials* left) except -1:
    global next_serials
    lock(&guard)
    while generation_count == 0 or generation_forks != forks_seen:
        unlock(&guard)
        begin_generation()
        lock(&guard)
    left.next = next_serials
    next_serials += SERIALS
    left.end = next_serials
    left.forks = forks_seen
    unlock(&guard)
    return 0


cdef int begin_generation() except -1:
    """Draw this process's key, unless another thread is faster; the caller checks."""
    global generations, generation_count, generation_forks
    cdef bytes drawn = urandom(sizeof(uint64_t[2]))
    # urandom may have run other threads, and one of them may have forked.
    cdef int count
    cdef Generation* grown
    lock(&guard)
    count = generation_count
    unlock(&guard)
    grown = <Generation*>PyMem_RawMalloc((count + 1) * sizeof(Generation))
    if grown == NULL:
        raise MemoryError()
    lock(&guard)
    if generation_count == count and (count == 0 or generation_forks != forks_seen):
        if count:
            memcpy(grown, generations, count * sizeof(Generation))
        memcpy(grown[count].key, PyBytes_AS_STRING(drawn), sizeof(uint64_t[2]))
        grown[count].first = next_serials
        generations, grown = grown, generations
        generation_count = count + 1
        generation_forks = forks_seen
    unlock(&guard)
    PyMem_RawFree(grown)
    memset(PyBytes_AS_STRING(drawn), 0, sizeof(uint64_t[2]))
    return 0


cdef void key_for(uint64_t serial, uint64_t* key) noexcept nogil:
    cdef int at
    lock(&guard)
    at = generation_count - 1
    while generations[at].first > serial:
        at -= 1
    memcpy(key, generations[at].key, sizeof(uint64_t[2]))
    unlock(&guard)


cdef str id_for(uint64_t serial):
    cdef uint64_t key[2]
    key_for(serial, key)
    return keyed_id(key, serial)


cdef str timed_id_for(uint64_t serial, uint64_t milliseconds):
    cdef str text = PyUnicode_New(36, 127)
    cdef uint64_t key[2]
    cdef unsigned char bytes[ID_BYTES]
    cdef int i
    key_for(serial, key)
    keyed_bytes(bytes, key, serial)
    for i in range(6):
        bytes[i] = <unsigned char>(milliseconds >> (40 - 8 * i))
    write_text(<char*>PyUnicode_DATA(text), bytes, 7)
    return text


def uuid4_text():
    """A new version-4 UUID (RFC 9562) as 36 lower-case characters, from the system's CSPRNG.

    O(1). One call in 128 reads more random bytes from the system; its errors propagate.

    >>> import uuid
    >>> uuid.UUID(uuid4_text()).version
    4
    """
    return new_id()
