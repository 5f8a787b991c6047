// Prints the probability of each class for one JPEG: label GRAPH PHOTO
#include <stdio.h>
#include <stdlib.h>
#include <tensorflow/c/c_api.h>
#include <tensorflow/c/tf_tstring.h>

static char *read_file(const char *path, size_t *length) {
  FILE *file = fopen(path, "rb");
  if (!file) exit((perror(path), 1));
  fseek(file, 0, SEEK_END);
  char *bytes = (char *)malloc(*length = ftell(file));
  rewind(file);
  if (fread(bytes, 1, *length, file) != *length) exit((perror(path), 1));
  fclose(file);
  return bytes;
}

static void check(TF_Status *status) {
  if (TF_GetCode(status) != TF_OK) exit((fprintf(stderr, "%s\n", TF_Message(status)), 1));
}

int main(int argc, char **argv) {
  if (argc != 3) return fprintf(stderr, "usage: label GRAPH PHOTO\n"), 2;
  TF_Status *status = TF_NewStatus();
  TF_Graph *graph = TF_NewGraph();
  size_t length;
  char *bytes = read_file(argv[1], &length);
  TF_Buffer *graph_def = TF_NewBufferFromString(bytes, length);
  TF_GraphImportGraphDef(graph, graph_def, TF_NewImportGraphDefOptions(), status);
  check(status);
  TF_Session *session = TF_NewSession(graph, TF_NewSessionOptions(), status);
  check(status);

  TF_Tensor *photo = TF_AllocateTensor(TF_STRING, NULL, 0, sizeof(TF_TString)), *answer;
  TF_TString *text = (TF_TString *)TF_TensorData(photo);
  bytes = read_file(argv[2], &length);
  TF_StringInit(text);
  TF_StringCopy(text, bytes, length);
  TF_Output input = {TF_GraphOperationByName(graph, "DecodeJpeg/contents"), 0};
  TF_Output output = {TF_GraphOperationByName(graph, "final_result"), 0};
  TF_SessionRun(session, NULL, &input, &photo, 1, &output, &answer, 1, NULL, 0, NULL, status);
  check(status);
  for (int i = 0; i < TF_Dim(answer, 1); i++) printf("%.5f\n", ((float *)TF_TensorData(answer))[i]);
  return 0;
}
