package headrace.flink;

import java.io.ByteArrayOutputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.util.LinkedHashMap;
import java.util.Map;
import org.apache.flink.streaming.api.operators.AbstractStreamOperator;
import org.apache.flink.streaming.api.operators.BoundedOneInput;
import org.apache.flink.streaming.api.operators.OneInputStreamOperator;
import org.apache.flink.streaming.runtime.streamrecord.StreamRecord;
import org.apache.flink.streaming.runtime.tasks.ProcessingTimeService;

/**
 * Many Kafka records as one record of Flink's, by columns; headrace.engines.flink.frames reads them. Big endian:
 *
 * <pre>
 * int source, long number, int groups; for each group (a partition's messages, in the order of their offsets):
 *   int length, topic; int partition; int messages
 *   long offset of each; long timestamp of each; int length of each key, of each value (-1: null)
 *   int length, keys; int length, values; int length, headers (0: nobody has any)
 *   headers: for each message int count, (int length, name, int length (-1: null), value)*
 * </pre>
 *
 * Numbers begin with 0 at each start. Everything is sent before a barrier, so there is no state. Where nothing comes, a
 * record without groups is sent now and then: whoever runs downstream is begun by the first one, and can say with it
 * that it has failed.
 */
public class Batcher extends AbstractStreamOperator<byte[]>
        implements OneInputStreamOperator<byte[], byte[]>, BoundedOneInput {
    private static final long serialVersionUID = 1L;

    private final int source;
    private final int mostRows;
    private final int mostBytes;
    private final long lingerMs;
    private final long heartbeatMs;
    private transient Map<ByteBuffer, Group> groups;
    private transient int rows;
    private transient int size;
    private transient boolean timed;
    private transient long number;
    private transient long sentAt;

    public Batcher(int source, int mostRows, int mostBytes, long lingerMs, long heartbeatMs) {
        this.source = source;
        this.mostRows = mostRows;
        this.mostBytes = mostBytes;
        this.lingerMs = lingerMs;
        this.heartbeatMs = heartbeatMs;
    }

    /** Messages of one partition. */
    private static final class Group {
        final ByteArrayOutputStream[] columns = new ByteArrayOutputStream[7];
        final DataOutputStream[] data = new DataOutputStream[7];
        final byte[] name;
        final int partition;
        int messages;
        boolean headers;

        Group(byte[] name, int partition) {
            this.name = name;
            this.partition = partition;
            for (int i = 0; i < columns.length; i++) {
                columns[i] = new ByteArrayOutputStream(1 << 12);
                data[i] = new DataOutputStream(columns[i]);
            }
        }

        /** Adds a message, from behind its partition on: offset, timestamp, key, value, headers. */
        void add(ByteBuffer in) throws IOException {
            messages++;
            data[0].writeLong(in.getLong());
            data[1].writeLong(in.getLong());
            column(in, 2, 4);
            column(in, 3, 5);
            headers |= in.getInt(in.position()) > 0;
            data[6].write(in.array(), in.arrayOffset() + in.position(), in.remaining());
        }

        private void column(ByteBuffer in, int lengths, int bytes) throws IOException {
            int length = in.getInt();
            data[lengths].writeInt(length);
            if (length > 0) {
                data[bytes].write(in.array(), in.arrayOffset() + in.position(), length);
                in.position(in.position() + length);
            }
        }

        void write(DataOutputStream out) throws IOException {
            out.writeInt(name.length);
            out.write(name);
            out.writeInt(partition);
            out.writeInt(messages);
            for (int i = 0; i < 4; i++) {
                columns[i].writeTo(out);
            }
            for (int i = 4; i < 7; i++) {
                boolean some = i < 6 || headers;
                out.writeInt(some ? columns[i].size() : 0);
                if (some) {
                    columns[i].writeTo(out);
                }
            }
        }
    }

    @Override
    public void open() throws Exception {
        super.open();
        groups = new LinkedHashMap<>();
        beat(1);
    }

    private void beat(long inMs) {
        ProcessingTimeService time = getProcessingTimeService();
        time.registerTimer(time.getCurrentProcessingTime() + inMs, now -> {
            if (rows == 0 && (number == 0 || now - sentAt >= heartbeatMs)) {
                send();
            }
            beat(heartbeatMs);
        });
    }

    @Override
    public void processElement(StreamRecord<byte[]> element) throws Exception {
        byte[] record = element.getValue();
        ByteBuffer in = ByteBuffer.wrap(record);
        int length = in.getInt();
        // Topic and partition, as they stand in the record.
        ByteBuffer where = ByteBuffer.wrap(record, 4, length + 4).slice();
        Group group = groups.get(where);
        if (group == null) {
            byte[] name = new byte[length];
            System.arraycopy(record, 4, name, 0, length);
            group = new Group(name, in.getInt(4 + length));
            groups.put(where, group);
        }
        in.position(8 + length);
        group.add(in);
        rows++;
        size += record.length;
        if (rows >= mostRows || size >= mostBytes) {
            send();
        } else if (!timed) {
            timed = true;
            ProcessingTimeService time = getProcessingTimeService();
            time.registerTimer(time.getCurrentProcessingTime() + lingerMs, now -> {
                timed = false;
                flush();
            });
        }
    }

    @Override
    public void prepareSnapshotPreBarrier(long checkpointId) throws Exception {
        flush();
    }

    @Override
    public void endInput() throws Exception {
        flush();
    }

    private void flush() throws IOException {
        if (rows > 0) {
            send();
        }
    }

    private void send() throws IOException {
        ByteArrayOutputStream bytes = new ByteArrayOutputStream(size + 64);
        DataOutputStream out = new DataOutputStream(bytes);
        out.writeInt(source);
        out.writeLong(number++);
        out.writeInt(groups.size());
        for (Group group : groups.values()) {
            group.write(out);
        }
        groups.clear();
        rows = 0;
        size = 0;
        sentAt = getProcessingTimeService().getCurrentProcessingTime();
        output.collect(new StreamRecord<>(bytes.toByteArray()));
    }
}
