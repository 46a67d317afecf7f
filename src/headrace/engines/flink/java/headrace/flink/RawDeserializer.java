package headrace.flink;

import java.io.ByteArrayOutputStream;
import java.io.DataOutputStream;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import org.apache.flink.api.common.typeinfo.PrimitiveArrayTypeInfo;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.connector.kafka.source.reader.deserializer.KafkaRecordDeserializationSchema;
import org.apache.flink.kafka.shaded.org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.flink.kafka.shaded.org.apache.kafka.common.header.Header;
import org.apache.flink.util.Collector;

/** A Kafka record, whole, as {@link Batcher} takes it: topic, partition, offset, timestamp, key, value, headers. */
public class RawDeserializer implements KafkaRecordDeserializationSchema<byte[]> {
    private static final long serialVersionUID = 1L;

    @Override
    public void deserialize(ConsumerRecord<byte[], byte[]> record, Collector<byte[]> out) throws IOException {
        byte[] topic = record.topic().getBytes(StandardCharsets.UTF_8);
        int size = 64 + topic.length + length(record.key()) + length(record.value());
        ByteArrayOutputStream bytes = new ByteArrayOutputStream(size);
        DataOutputStream data = new DataOutputStream(bytes);
        put(data, topic);
        data.writeInt(record.partition());
        data.writeLong(record.offset());
        data.writeLong(record.timestamp());
        put(data, record.key());
        put(data, record.value());
        Header[] headers = record.headers().toArray();
        data.writeInt(headers.length);
        for (Header header : headers) {
            put(data, header.key().getBytes(StandardCharsets.UTF_8));
            put(data, header.value());
        }
        out.collect(bytes.toByteArray());
    }

    private static int length(byte[] bytes) {
        return bytes == null ? 0 : bytes.length;
    }

    private static void put(DataOutputStream out, byte[] bytes) throws IOException {
        out.writeInt(bytes == null ? -1 : bytes.length);
        if (bytes != null) {
            out.write(bytes);
        }
    }

    @Override
    public TypeInformation<byte[]> getProducedType() {
        return PrimitiveArrayTypeInfo.BYTE_PRIMITIVE_ARRAY_TYPE_INFO;
    }
}
