"""Version-4 UUIDs (RFC 9562) as text, from the system's CSPRNG drawn in batches.

One call of ``os.urandom`` serves `BATCH` identifiers, and the bytes of each are wiped as it is made. A batch is used
only in the process that drew it: it records the fork count (`synthex_fast._forks`, which sees forks made in C too), and
a child draws its own. On the free-threaded build each thread has its own batch, so no lock is taken there either.

`keyed_id` makes an identifier that can be computed again: SipHash-2-4 (Aumasson and Bernstein, 2012) of a number under
a secret key, with a result of 128 bits. Whoever lacks the key can't tell it from random bits.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from synthex_fast._forks cimport forks_seen
from synthex_fast._sync cimport unlikely

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

    /* The 36 characters of a version-4, variant-10 UUID. */
    static void synthex_id_text(char *text, unsigned char *bytes) {
        bytes[6] = (unsigned char)((bytes[6] & 0x0F) | 0x40);
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
    void write_text "synthex_id_text"(char*, unsigned char*) noexcept nogil
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
    write_text(<char*>PyUnicode_DATA(text), bytes)
    memset(bytes, 0, ID_BYTES)
    return text


cdef str keyed_id(const uint64_t* key, uint64_t number):
    cdef str text = PyUnicode_New(36, 127)
    cdef unsigned char bytes[ID_BYTES]
    keyed_bytes(bytes, key, number)
    write_text(<char*>PyUnicode_DATA(text), bytes)
    return text


def uuid4_text():
    """A new version-4 UUID (RFC 9562) as 36 lower-case characters, from the system's CSPRNG.

    O(1). One call in 128 reads more random bytes from the system; its errors propagate.

    >>> import uuid
    >>> uuid.UUID(uuid4_text()).version
    4
    """
    return new_id()
